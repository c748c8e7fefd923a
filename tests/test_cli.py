"""The program: exit codes, one sentence for a mistake, one JSON object for a machine, a quick help."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

import pytest
import transformers

from nestling import cli
from nestling.commands import Command
from nestling.errors import InputError
from nestling.train import loop

TINY = ["--model", "transformer++", "--size", "nano"]
FIELDS = ["--set", "hidden_size=16", "intermediate_size=32", "num_hidden_layers=1", "num_attention_heads=2"]
SHORT = ["--steps", "2", "--batch-size", "2", "--sequence-length", "16", "--warmup-steps", "1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("A cat sat on the mat. The dog ran home.\n" * 200)
    return str(path)


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("NESTLING_CACHE", str(tmp_path_factory.getbasetemp() / "cli-stores"))
    # The program asks for this through the environment, which is too late once a test has imported transformers.
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(trained, text):
    """The folder of a run of two steps."""
    if not trained.exists():
        assert cli.main(["train", *TINY, *FIELDS, *SHORT, "--data", text, "--out", str(trained)]) == 0
    return trained


def mistake(capsys, *arguments):
    """The one sentence with which a command line ends with exit code 2."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("nestling: ")
    return said[0]


def answer(capsys, *arguments):
    """The JSON object that a command prints, and nothing else on stdout."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_help_is_quick_and_lists_every_command():
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "nestling.cli", "--help"], capture_output=True, text=True)
        times.append(time.perf_counter() - begun)
        assert done.returncode == 0
        assert all(name in done.stdout for name in cli.COMMANDS)
    busy = 1 + os.getloadavg()[0] / (os.cpu_count() or 1)
    assert statistics.median(times) < busy


def test_help_loads_nothing_heavy():
    script = "import sys; from nestling.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    script += "print(sorted({'torch', 'transformers', 'numpy', 'datasets', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("arguments", [["nonsense"], [], ["train", "--out", "x", "--stepz", "3"], ["train"]], ids=str)
def test_an_unknown_command_or_option_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_train_answers_in_json_and_resume_needs_no_other_argument(text, tmp_path, capsys):
    out = tmp_path / "run"
    stopped = answer(
        capsys, "train", *TINY, *FIELDS, *SHORT, "--data", text, "--out", out, "--json", "--max-seconds", 1e-9
    )
    assert not stopped["finished"]
    done = answer(capsys, "train", "--out", out, "--resume", "--json", "--max-seconds", "None")
    assert done["finished"]
    assert done["step"] == 2


def test_train_tells_people_too(text, tmp_path, capsys):
    assert cli.main(["train", *TINY, *FIELDS, *SHORT, "--data", text, "--out", str(tmp_path / "run")]) == 0
    assert "valid_bpb" in capsys.readouterr().out


BAD_TRAINING = [
    (["--data", "/no/such/text"], "data: '/no/such/text'"),
    (["--sequence-length", "1"], "sequence_length: 1"),
    (["--model", "no-such-model"], "no-such-model"),
    (["--size", "no-such-size"], "no-such-size"),
    (["--set", "no_such_field=1"], "no_such_field"),
    (["--set", "hidden_size=30", "num_attention_heads=4"], "30"),
    (["--set", "hidden_size=wide"], "hidden_size"),
    (["--batch-size", "3", "--accumulate", "2"], "accumulate: 2"),
    (["--learning-rate", "nan"], "learning_rate: nan"),
    (["--tokenizer", "bpe:many"], "tokenizer: 'bpe:many'"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD_TRAINING, ids=[" ".join(a) for a, _ in BAD_TRAINING])
def test_bad_training_arguments_are_one_sentence(text, tmp_path, capsys, arguments, said):
    rest = [] if "--data" in arguments else ["--data", text]
    model = [] if "--model" in arguments else ["--model", "transformer++"]
    assert said in mistake(capsys, "train", *SHORT, *model, *rest, *arguments, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_empty_data_is_one_sentence(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    said = mistake(capsys, "train", *TINY, "--data", tmp_path / "empty.txt", "--out", tmp_path / "run")
    assert "empty.txt" in said


def test_mistakes_with_the_run_folder_are_one_sentence(run, tmp_path, capsys, text):
    assert "--resume" in mistake(capsys, "train", *TINY, "--data", text, "--out", run)
    assert "no checkpoint" in mistake(capsys, "train", *TINY, "--data", text, "--out", tmp_path, "--resume")
    assert "another seed" in mistake(capsys, "train", "--out", run, "--resume", "--seed", 5)
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in mistake(capsys, "train", "--out", tmp_path, "--resume")


def test_a_damaged_checkpoint_is_one_sentence(text, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", *TINY, *FIELDS, *SHORT, "--data", text, "--out", str(out)]) == 0
    path = out / "checkpoint-2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert str(path) in mistake(capsys, "train", "--out", out, "--resume")


def test_divergence_is_one_sentence(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_gradient", lambda run: (float("nan"), 1.0))
    said = mistake(capsys, "train", *TINY, *FIELDS, *SHORT, "--data", text, "--out", tmp_path / "run")
    assert "at step 1 the loss is nan" in said
    assert "checkpoint-0" in said


def test_ctrl_c_says_how_to_go_on(text, tmp_path, capsys, monkeypatch):
    def interrupt(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_update", interrupt)
    out = tmp_path / "run"
    assert cli.main(["train", *TINY, *FIELDS, *SHORT, "--data", text, "--out", str(out)]) == 130
    assert f"nestling train --out {out} --resume" in capsys.readouterr().err


def test_generate_continues_the_prompt(run, capsys):
    found = answer(capsys, "generate", run, "--prompt", "A cat", "--max-new-tokens", 12, "--json")
    assert found["prompt"] == "A cat"
    assert 1 <= found["tokens"] <= 12
    again = answer(capsys, "generate", run, "--prompt", "A cat", "--max-new-tokens", 12, "--json")
    assert again["text"] == found["text"]
    other = answer(capsys, "generate", run, "--prompt", "A cat", "--max-new-tokens", 12, "--json", "--seed", 1)
    assert other["text"] != found["text"]


def test_generate_is_greedy_at_temperature_zero_and_takes_a_model_folder(run, capsys):
    greedy = ["--temperature", 0, "--max-new-tokens", 5, "--json"]
    texts = {
        answer(capsys, "generate", folder, *greedy, "--seed", i)["text"]
        for i, folder in enumerate((run, run / "model"))
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--temperature", "-1"], "temperature: -1"),
        (["--top-k", "-1"], "top_k: -1"),
        (["--max-new-tokens", "0"], "max_new_tokens: 0"),
    ],
    ids=str,
)
def test_bad_generation_arguments_are_one_sentence(run, capsys, arguments, said):
    assert said in mistake(capsys, "generate", run, *arguments)


def test_a_model_that_is_missing_or_damaged_is_one_sentence(run, tmp_path, capsys):
    assert "does not exist" in mistake(capsys, "generate", tmp_path / "nothing")
    assert str(tmp_path) in mistake(capsys, "generate", tmp_path)
    for path in (run / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    assert str(tmp_path) in mistake(capsys, "generate", tmp_path)


def test_doctor_reports_this_machine(capsys):
    found = answer(capsys, "doctor", "--json")
    assert found["ok"]
    assert found["core"]["finite"]
    assert set(found["corpora"]) == {"python", "cpp", "english"}
    assert found["torch"]


def test_a_command_is_a_dataclass_and_a_line_in_the_table(monkeypatch, capsys):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Greet(Command):
        """Greet."""

        name: str = "you"

        def run(self):
            if self.name == "nobody":
                raise InputError("name: 'nobody' cannot be greeted; give another")
            return {"greeting": f"hello {self.name}"}

    monkeypatch.setattr(sys.modules[__name__], "Greet", Greet, raising=False)
    monkeypatch.setitem(sys.modules, "greeting", sys.modules[__name__])
    monkeypatch.setitem(cli.COMMANDS, "greet", "greeting:Greet")
    assert cli.main(["greet", "--name", "owl"]) == 0
    assert capsys.readouterr().out == "greeting  hello owl\n"
    assert answer(capsys, "greet", "--json") == {"greeting": "hello you"}
    assert "nobody" in mistake(capsys, "greet", "--name", "nobody")


def test_levels_of_a_new_model_and_its_drawings(tmp_path, capsys):
    found = answer(capsys, "levels", *TINY, *FIELDS, "--optimizer", "m3", "--step-tokens", 512, "--json")
    levels = [[(one["name"], one["frequency"]) for one in level] for level in found["levels"]]
    assert levels[0] == [("attention", "∞")]
    assert ("slow momentum", "1/5,120") in levels[-1]
    for name in ("levels.svg", "levels.html"):
        path = tmp_path / name
        assert answer(capsys, "levels", *TINY, *FIELDS, "--out", path, "--json")["out"] == str(path)
        assert "attention" in path.read_text()
    assert cli.main(["levels", *TINY, *FIELDS, "--optimizer", "none"]) == 0
    said = capsys.readouterr().out
    assert "attention" in said
    assert "momentum" not in said


def test_levels_of_a_run_are_those_it_was_trained_with(run, capsys):
    found = answer(capsys, "levels", run, "--json")
    assert found["step_tokens"] == 2 * 16
    assert found == json.loads((run / "config.json").read_text())["system"]
    assert answer(capsys, "levels", run / "model", "--json")["step_tokens"] == 8 * 256
    assert answer(capsys, "levels", run, "--optimizer", "muon", "--json") != found
    descent = answer(capsys, "levels", run, "--optimizer", "dgd", "--json")
    assert "weights (DGD)" in [one["name"] for one in descent["levels"][-1]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "folder or --model is needed"),
        (["--model", "hope", "nowhere"], "only one of the two"),
        (["nowhere"], "folder: 'nowhere' does not exist"),
        ([*TINY, "--optimizer", "adom"], "optimizer: 'adom' is unknown; give one of adamw"),
        ([*TINY, "--out", "levels.png"], "out: 'levels.png' must end in .svg or .html"),
        ([*TINY, "--step-tokens", "0"], "step_tokens: 0 is not allowed"),
        ([*TINY, "--out", "levels.svg", "--width", "20"], "width: 20 is too narrow"),
        (["--model", "hop"], "'hop' is unknown"),
    ],
    ids=str,
)
def test_bad_arguments_of_levels_are_one_sentence(capsys, arguments, said):
    assert said in mistake(capsys, "levels", *arguments)


def test_levels_takes_no_fields_for_a_folder(run, tmp_path, capsys):
    assert "set: fields are for --model" in mistake(capsys, "levels", run, "--set", "hidden_size=8")
    (tmp_path / "model").mkdir()
    for path in (run / "model").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in mistake(capsys, "levels", tmp_path)
