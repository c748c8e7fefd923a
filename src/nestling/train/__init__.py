"""Training: one plain loop, its configuration, checkpoints and metrics.

Importing this package loads nothing heavy; torch comes with `nestling.train.loop`.
"""
