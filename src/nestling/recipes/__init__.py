"""Recipes: whole experiments as functions, one file each; `nestling recipe` runs those of RECIPES by name."""

RECIPES = {
    "fig4": ("fig4:fig4", "Fig. 4: momentum against delta momentum on a curved valley"),
    "orthogonal": ("orthogonal:orthogonal", "Sec. 4.3: forgetting over orthogonal tasks, by optimizer"),
    "fig11": ("fig11:fig11", "Fig. 11: a small ViT on digits, by optimizer"),
    "fig12": ("optimizer_speed:fig12", "Fig. 12: step times on matrices of our models, by optimizer"),
    "fig12-paper": ("optimizer_speed:fig12_paper", "Fig. 12 with the paper's sizes, 140M and 1.3B"),
    "optimizers-text": ("optimizers_text:optimizers_text", "Transformer++ and Hope on Python code, by optimizer"),
    "table1": ("table1:table1", "Table 1: needles, trained to 2k tokens, tested to 16k"),
    "table2": ("table2:table2", "Table 2: language modeling and common sense, by lm-eval"),
    "table3": ("table3:table3", "Table 3: in-context recall, by original files of question sets"),
    "table4": ("table4:table4", "Table 4: MAD's six tasks"),
    "mqar": ("mqar:mqar", "multi-query associative recall by length and number of pairs"),
    "table5": ("table5:table5", "Table 5: formal languages"),
    "table6": ("table6:table6", "Table 6: Hope without one of its components"),
    "fig7": ("fig7:fig7", "Fig. 7: levels and lowest frequency, on needles and QASPER"),
    "fig8": ("fig8:fig8", "Fig. 8: continual translation of two made-up languages"),
    "fig9": ("fig9:fig9", "Fig. 9: BABILong, trained short, tested long"),
    "fig10": ("fig10:fig10", "Fig. 10: perplexity against the context used"),
    "peers": ("peers:peers", "every model of the paper's tables: quality, speed and state"),
    "peers-speed": ("peers:peers_speed", "the speeds of peers alone, for a quiet machine"),
    "domains": ("domains:domains_study", "a stream of domains: what levels learn and keep"),
    "learning-text": ("learning:text", "what Hope's choices do to language modeling"),
    "learning-moded": ("learning:moded", "self-modification on the moded store"),
    "intents-clinc": ("intents:clinc", "Fig. 6: class-incremental CLINC150, by learner"),
    "intents-banking": ("intents:banking", "Fig. 6: class-incremental Banking77, by learner"),
    "task-levels": ("task_levels:task_levels", "levels that learn from the task, in training or afterwards"),
}
"""Name -> (`module:function` in this package, what it is). A function takes the folder for its results and drawing, and
a function that is told of progress; it returns what `nestling.recipes.cells.Study` does."""
