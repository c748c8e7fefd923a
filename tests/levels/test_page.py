"""The page of a system: complete, and in need of nothing but itself."""

import re
from xml.etree import ElementTree

import torch

from nestling import models
from nestling.levels import inspect
from tables import TINY

MODEL = models.create("hope", **TINY | {"chunk_size": 4, "projection_chunk_size": 4})
SYSTEM = inspect(MODEL, torch.optim.AdamW(MODEL.parameters()))


def test_it_is_well_formed_and_says_everything(tmp_path):
    text = SYSTEM.to_html(tmp_path / "levels.html", "Hope & <more>")
    assert (tmp_path / "levels.html").read_text(encoding="utf-8") == text
    closed = re.sub(r"<(meta|link)([^>]*)>", r"<\1\2/>", text.replace("<!doctype html>", ""))
    root = ElementTree.fromstring(closed)
    said = " ".join("".join(root.itertext()).split())
    assert "Hope & <more>" in said
    for one in SYSTEM.components:
        for fact in (one.name, one.context, one.objective, one.rule, f"{one.parameters:,} numbers"):
            assert fact in said
        for transfer in one.transfers:
            assert f"passes to {transfer.target}" in said
    assert text.count("<svg") == 2


def test_it_needs_nothing_but_itself():
    text = SYSTEM.to_html()
    assert not re.search(r"<script|@import|url\(|src=", text)
    assert set(re.findall(r'href="([^"]*)"', text)) == {"data:,"}
    assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg"}
