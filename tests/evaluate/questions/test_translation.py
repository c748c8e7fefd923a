"""The made-up languages: what the rules say is what the sentences do; the same for the Kalamang files."""

import itertools
import os
from pathlib import Path

import pytest

from nestling.data import ByteTokenizer
from nestling.errors import InputError
from nestling.evaluate.questions import TASKS, Material
from nestling.evaluate.questions.kalamang import read
from nestling.evaluate.questions.translation import ADJECTIVES, ADVERBS, NOUNS, VERBS, dice, languages, sentence

DATA = Path(os.environ.get("NESTLING_DATA", "absent")) / "kalamang_dictionaria"


def decoded(language, text):
    """English of a sentence by the dictionary and the rules alone, or by their inverse: brute force."""
    stems = {word: stem for stem, word in language.words.items()}
    tokens, marks = [], []
    for token in text.split():
        candidates = []
        for plural, case, past in itertools.product((False, True), repeat=3):
            ending = language.plural * plural + language.object * case + language.past * past
            stem = stems.get(token[: len(token) - len(ending)] if ending else token)
            fits = token.endswith(ending) and stem is not None
            if fits and ((stem in NOUNS and not past) or (stem in VERBS and not (plural or case)) or not ending):
                candidates.append((stem, plural, case, past))
        assert len(candidates) == 1, (token, candidates)
        tokens.append(candidates[0][0])
        marks.append(candidates[0])
    subject = next(i for i, (stem, _, case, _) in enumerate(marks) if stem in NOUNS and not case)
    object_ = next(i for i, (stem, _, case, _) in enumerate(marks) if stem in NOUNS and case)
    verb = next(i for i, stem in enumerate(tokens) if stem in VERBS)

    def phrase(at):
        side = at - 1 if language.adjective_first else at + 1
        adjective = tokens[side] if 0 <= side < len(tokens) and tokens[side] in ADJECTIVES else None
        return tokens[at], adjective, marks[at][1]

    adverb = tokens[-1] if tokens[-1] in ADVERBS else None
    order = sorted(zip((subject, verb, object_), "SVO", strict=True))
    assert "".join(letter for _, letter in order) == language.order
    return phrase(subject), tokens[verb], marks[verb][3], phrase(object_), adverb


@pytest.mark.parametrize("seed", range(8))
def test_sentences_follow_the_dictionary_and_the_rules(seed):
    first, second = languages(seed)
    assert not set(first.words.values()) & set(second.words.values())
    assert first.order != second.order
    assert first.adjective_first != second.adjective_first
    assert set(first.words) == {*NOUNS, *VERBS, *ADJECTIVES, *ADVERBS}
    chance = dice("test", seed)
    for language in (first, second):
        for _ in range(60):
            one = sentence(chance)
            subject, object_ = ((p.noun, p.adjective, p.plural) for p in (one.subject, one.object))
            expected = (subject, one.verb, one.past, object_, one.adverb)
            assert decoded(language, language.sentence(one)) == expected


def test_english_is_english():
    from nestling.evaluate.questions.translation import Phrase, Sentence

    dogs, child = Phrase("dog", "old", True), Phrase("child", None, False)
    assert Sentence(dogs, "see", False, child, "today").english() == "the old dogs see the child today"
    assert Sentence(child, "carry", False, dogs, None).english() == "the child carries the old dogs"
    assert Sentence(child, "wash", True, Phrase("child", None, True), None).english() == "the child washed the children"


@pytest.mark.parametrize("name", ["translation-first", "translation-second", "continual-first", "continual-second"])
def test_books_and_questions(name):
    material, task = Material(ByteTokenizer()), TASKS[name]
    first, second = languages(4)
    for example in itertools.islice(task.examples(material, 4, 6000), 20):
        assert 5700 < len(example.prompt) + 64 <= 6000
        asked = first if name.endswith("first") else second
        assert example.question.startswith(f"\n{asked.name}: {asked.sentence(example.about['sentence'])}\n")
        shown = [line[9:] for line in example.prompt.splitlines() if line.startswith("English: ")]
        assert example.answers[0][0] not in shown
        assert len(shown) == sum(map(len, example.about["pairs"])) > 10
        places = [example.prompt.find(f"# {language.name}\n") for language in (first, second)]
        if name.startswith("continual"):
            assert 0 == places[0] < places[1]
        else:
            assert sorted(places) == [-1, 0]
        assert task.summary([example.target], [example])["chrf"] == pytest.approx(1)
    with pytest.raises(InputError, match="tokens are too few"):
        next(task.examples(material, 4, 500))


def test_kalamang_holds_sentences_out(everything):
    task, material = TASKS["kalamang"], everything("kalamang")
    examples = list(task.examples(material, 0, 600))
    assert len(examples) == 4
    for example in examples:
        asked = example.question.split("\n")[1]
        assert "Ma (Pronoun): he; she\n" in example.prompt
        assert example.prompt.count(asked) == 1
        assert 540 < len(example.prompt) + 64 <= 600
    held = {example.question for example in examples}
    assert not any(question.split("\n")[1] in example.context[0] for question in held for example in examples)
    (material.data / "senses.csv").unlink()
    with pytest.raises(InputError, match=r"no table senses\.csv"):
        read(material.data)


@pytest.mark.skipif(not DATA.is_dir(), reason="NESTLING_DATA has no kalamang_dictionaria")
def test_the_kalamang_files():
    pairs, words = read(DATA)
    assert 1700 < len(pairs) <= 1763
    assert ("Lenggalenggan se koyet.", "My chilli is finished.") in pairs
    assert words["afukat"].endswith(": avocado")
    example = next(TASKS["kalamang"].examples(Material(data=DATA), 0, 8000))
    assert 7700 < len(example.prompt.encode()) + 64 <= 8000
