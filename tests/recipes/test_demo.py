"""The demo: an equal comparison, a complete page, and it goes on where it stopped."""

import json

import pytest

from nestling import cli
from nestling.commands.demo import Demo
from nestling.errors import InputError
from nestling.evaluate.runs import load
from nestling.recipes import assess
from nestling.recipes.demo import LEARNING_RATES, _affordable, _plan, demo
from nestling.train.config import TrainConfig


def test_both_models_have_equal_parameters_tokens_and_order(finished):
    out, _ = finished
    runs = load([out / name for name in LEARNING_RATES])
    sizes = [run.config["parameters"] for run in runs]
    assert max(sizes) <= 1.03 * min(sizes)
    assert len({run.steps[-1]["tokens"] for run in runs}) == 1
    different = {key for key in runs[0].train if len({json.dumps(run.train[key]) for run in runs}) > 1}
    assert different <= {"model", "learning_rate"}


def test_results_hold_everything_that_is_promised(finished):
    out, result = finished
    for name in LEARNING_RATES:
        found = result["runs"][name]
        assert set(found["bits_per_byte"]) == {"16", "128"}
        assert all(0 < value < 16 for value in found["bits_per_byte"].values())
        assert found["state_bytes"] > 0
        assert found["state_tokens"] == assess.CONTEXT
        assert found["tokens_per_second"] > 0
        assert found["generated_per_second"] > 0
        assert found["sample"]["prompt"]
        assert "weights" in {part["name"] for level in found["system"]["levels"] for part in level}
        positions, loss = found["loss_by_position"].values()
        assert positions == sorted(positions)
        assert len(positions) == len(loss) >= 5
    assert (out / "report.html").read_text().count("<h2>") == 6
    rows = {row[0] for row in result["table"]["rows"]}
    assert {"parameters", "bits per byte at 16 tokens", "bits per byte at 128 tokens"} <= rows
    assert {"training tokens per second", "state after 8,192 tokens"} <= rows


def test_attention_keeps_every_token_and_hope_a_fixed_state(finished):
    _, result = finished
    assert result["runs"]["transformer++"]["state_bytes"] > 4 * result["runs"]["hope"]["state_bytes"]


def test_people_read_a_table_a_verdict_and_where_the_page_lies(finished):
    out, result = finished
    said = Demo().show(result)
    assert str(out / "report.html") in said
    assert "Transformer++ is better in" in said
    assert "bits per byte at 128 tokens" in said


def test_again_it_only_draws(finished, text, small):
    out, result = finished
    model = out / "hope" / "model" / "model.safetensors"
    before = model.stat().st_mtime_ns
    again = demo(out, data=str(text), **small)
    assert model.stat().st_mtime_ns == before
    assert again["runs"] == result["runs"]


def test_lost_results_are_found_again(finished, text, small):
    out, result = finished
    (out / "hope" / "results.json").unlink()
    again = demo(out, data=str(text), **small)
    for key in ("bits_per_byte", "sample", "state_bytes"):
        assert again["runs"]["hope"][key] == result["runs"]["hope"][key]


def test_another_demo_in_the_folder_is_refused(finished, text, small):
    with pytest.raises(InputError, match="another seed, steps"):
        demo(finished[0], data=str(text), **small | {"seed": 1, "steps": 5})


def test_a_folder_with_something_else_is_refused(tmp_path, text, small):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="holds no demo"):
        demo(tmp_path, data=str(text), **small)


@pytest.mark.parametrize(("wrong", "said"), [({"minutes": 0}, "minutes: 0"), ({"steps": 0}, "steps: 0")])
def test_bad_arguments_leave_nothing_behind(tmp_path, text, small, wrong, said):
    with pytest.raises(InputError, match=said):
        demo(tmp_path / "out", data=str(text), **small | wrong)
    assert not (tmp_path / "out").exists()


def test_too_little_text_is_refused_before_training(tmp_path, small):
    (tmp_path / "short.txt").write_text("too short " * 30)
    with pytest.raises(InputError, match="stretches of 128"):
        demo(tmp_path / "out", data=str(tmp_path / "short.txt"), **small)


def test_the_time_left_decides_the_steps(text, monkeypatch):
    import nestling.recipes.demo as module

    monkeypatch.setattr(module, "_step", lambda config, store: None)
    monkeypatch.setattr(module.timing, "interleaved", lambda steps, rounds: {"hope": 0.3, "transformer++": 0.1})
    plan = {name: TrainConfig(threads=1) for name in LEARNING_RATES}
    assert _affordable(plan, None, lambda: 100.0, workers=1) == 150
    assert _affordable(plan, None, lambda: 100.0, workers=2) == 160
    assert _affordable(plan, None, lambda: 1.0, workers=2) == 20
    chosen = _plan(TrainConfig(data=str(text), sequence_length=16), None, lambda: 100.0, 5.0, 2)
    assert {config.steps for config in chosen.values()} == {160}


def test_the_program_refuses_too(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "holds no demo" in capsys.readouterr().err


def test_the_program_reports(finished, tmp_path, capsys):
    out, _ = finished
    page = tmp_path / "page.html"
    assert cli.main(["report", *(str(out / name) for name in LEARNING_RATES), "--out", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(page), "runs": 2, "studies": {}, "left_out": []}
    assert "<h2>Results</h2>" in page.read_text()
