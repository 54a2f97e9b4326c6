"""From a sample's captions to token ids: which caption, how it is changed, by which tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from viewshards.sample import caption_number, spoken_in, texts

Ids = NDArray[np.int64]

_SAID = (
    "a an the this that these those of in on at by for with from to and or is are was were be been being it its as "
    "there here his her their our your my some any"
)
STOP_WORDS = frozenset(_SAID.split())
"""Words that say little; articles, prepositions, auxiliaries, pronouns."""


@dataclass(frozen=True)
class TextAugmentation:
    """Stop-words away, then one of three edits (easy data augmentation, Wei and Zou, 2019); the empty text never.

    Attributes:
        stop_words: probability that the caption loses all its stop-words.
        synonym, swap, delete: weights by which one edit is drawn; all 0: none. A share of `rate` of the words, at least
            one, is replaced by a synonym, or trades places with another, or is left out.
        rate: share of the words an edit touches.
        synonyms: a JSON file {word: [words]}; without it the weight of `synonym` goes to the other two.
    """

    stop_words: float = 0.8
    synonym: float = 0.0
    swap: float = 0.0
    delete: float = 0.0
    rate: float = 0.1
    synonyms: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.stop_words <= 1 or not 0 < self.rate <= 1:
            raise ValueError(f"stop_words and rate are shares, got {self.stop_words} and {self.rate}")
        if min(self.synonym, self.swap, self.delete) < 0:
            raise ValueError("weights of edits must not be negative")

    @cached_property
    def _thesaurus(self) -> dict[str, list[str]]:
        if self.synonyms is None:
            return {}
        try:
            found = json.loads(Path(self.synonyms).read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.synonyms}: not readable as JSON ({error})") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.synonyms}: expected an object from word to list of words")
        return {word: texts(found, word) for word in found}

    def __call__(self, caption: str, rng: np.random.Generator) -> str:
        """The changed caption."""
        words = caption.split()
        if rng.random() < self.stop_words:
            words = [word for word in words if word.lower() not in STOP_WORDS] or words
        edits = {
            self._replace: self.synonym if self._thesaurus else 0.0,
            self._swap: self.swap,
            self._drop: self.delete,
        }
        total = sum(edits.values())
        if total > 0 and words:
            edit = list(edits)[int(rng.choice(3, p=[weight / total for weight in edits.values()]))]
            words = edit(words, max(1, round(self.rate * len(words))), rng)
        return " ".join(words)

    def _replace(self, words: list[str], count: int, rng: np.random.Generator) -> list[str]:
        known = [i for i, word in enumerate(words) if self._thesaurus.get(word.lower())]
        for i in rng.permutation(known)[:count].tolist() if known else []:
            choices = self._thesaurus[words[i].lower()]
            words[i] = choices[int(rng.integers(len(choices)))]
        return words

    def _swap(self, words: list[str], count: int, rng: np.random.Generator) -> list[str]:
        for _ in range(count if len(words) > 1 else 0):
            i, j = rng.choice(len(words), 2, replace=False).tolist()
            words[i], words[j] = words[j], words[i]
        return words

    def _drop(self, words: list[str], count: int, rng: np.random.Generator) -> list[str]:
        kept = np.sort(rng.permutation(len(words))[count:]).tolist()
        return [words[i] for i in kept] or words


WEAK = TextAugmentation()
STRONG = TextAugmentation(synonym=0.4, swap=0.4, delete=0.2)
"""The two of the improved recipe (Fini et al., TMLR 2023)."""


TOKENIZER_OPTIONS = frozenset({"clean", "reduction_mask", "strip_sep_token", "language"})
"""What a model's configuration may ask of its tokenizer; more could make it load code."""


def _check_tokenizer(text_config: Any, local: bool) -> None:
    """Raises ValueError for a tokenizer that would be looked up on a network, or could load code."""
    if not isinstance(text_config, dict):
        raise ValueError("its configuration has no text_cfg")
    if text_config.get("hf_tokenizer_name") and not local:
        raise ValueError("its tokenizer is Hugging Face's, and nothing is downloaded: give a folder, local-dir:PATH")
    options = text_config.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict):
        raise ValueError(f"tokenizer_kwargs are {options!r:.100}")
    strange = sorted(set(options) - TOKENIZER_OPTIONS)
    if strange or not all(isinstance(value, str | int | float | None) for value in dict(options).values()):
        raise ValueError(f"tokenizer_kwargs {', '.join(strange) or options} are not admitted")


class Captions:
    """Text views of a sample: one of its captions, drawn anew each epoch, and as often changed as there are views.

    Captions are what the named fields hold: the `.txt` file (`txt`), or a field of the `.json` with one string or a
    list of them. `captions` in the `.json` may have `hard_captions` beside it, a list for each of them, and
    `languages`, one for each.

    Args:
        views: how many text views, all of them the plain caption.
        augmentations: of each view instead, None: as it is.
        fields: where captions are looked for; all that are there take part.
        distinct: each view another caption of the sample, as far as there are, instead of all the same one.
        language: only captions of this language, of the field `captions`, which alone says what they are in; of several
            languages those of the first that a sample has captions in.
        leave_out: train without the samples that have no caption in any of `language`; else training does not start.
        duplicates: samples whose drawn captions are equal are known duplicates of each other, as those of one `same` in
            their `.json` are: no negatives. For objectives that know of such; a `same` goes before.
        hard: hard captions that go along, drawn anew each epoch from those of the drawn caption.
        every: in evaluation the first so many captions of a sample go along.
        context: tokens a caption is cut or padded to.
        tokenizer: an open_clip model whose tokenizer is used, such as `ViT-B-32`; or a folder `local-dir:PATH`.
    """

    def __init__(
        self,
        views: int = 1,
        augmentations: Sequence[TextAugmentation | None] | None = None,
        fields: Sequence[str] = ("captions", "txt"),
        distinct: bool = False,
        language: str | Sequence[str] | None = None,
        leave_out: bool = False,
        duplicates: bool = False,
        hard: int = 0,
        every: int = 5,
        context: int = 77,
        tokenizer: str = "ViT-B-32",
    ) -> None:
        if augmentations is not None and views not in (1, len(augmentations)):
            raise ValueError(f"Captions: {views} views, but augmentations of {len(augmentations)}: give one of the two")
        if distinct and (len(augmentations) if augmentations is not None else views) < 2:
            raise ValueError("Captions: distinct is of several views, and there is one")
        self.augmentations = list(augmentations) if augmentations is not None else [None] * views
        if distinct and duplicates:
            raise ValueError("Captions: duplicates compares the caption that is drawn, and distinct draws several")
        if not self.augmentations or not fields or every < 1:
            raise ValueError("Captions needs at least one view, one field and every >= 1")
        self.languages = [language] if isinstance(language, str) else list(language or ())
        if self.languages and "captions" not in fields:
            raise ValueError("language needs the field captions: it alone says what its texts are in")
        if leave_out and not self.languages:
            raise ValueError("leave_out leaves out samples without a caption in `language`: name one")
        self.leave_out, self.duplicates = leave_out, duplicates
        self.fields, self.hard, self.every = list(fields), hard, every
        self.distinct, self.context, self.tokenizer = distinct, context, tokenizer

    @cached_property
    def _tokenize(self) -> Any:
        import open_clip

        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.WARNING)  # it tells the root logger how it looked the name up
        try:
            local = self.tokenizer.startswith("local-dir:")
            if not local and ":" in self.tokenizer:
                raise ValueError("nothing is looked up on a network; local-dir:PATH is a folder on disk")
            config = open_clip.get_model_config(self.tokenizer)
            if config is None:  # which it would pass over in silence
                raise ValueError("open_clip does not know it")
            _check_tokenizer(config.get("text_cfg"), local)
            return open_clip.get_tokenizer(self.tokenizer, context_length=self.context)
        except (FileNotFoundError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(
                f"no tokenizer {self.tokenizer!r}: give the name of an open_clip model ({error})"
            ) from error
        finally:
            logging.getLogger().setLevel(level)

    def synonyms(self) -> list[str]:
        """Hashes of the files of synonyms that views draw from."""
        files = [each.synonyms for each in self.augmentations if each is not None and each.synonyms]
        return [hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] for file in files]

    def tokens(self, texts: Sequence[str]) -> Ids:
        """(n, context) int64 ids of n texts."""
        ids: Ids = self._tokenize([self._bounded(text) for text in texts]).numpy()
        return ids

    def _bounded(self, text: str) -> str:
        """A text without what lies beyond any tokenizer's `context`: time grows with the square of a word's length."""
        longest = 16 * self.context
        if len(text) <= longest:
            return text
        return " ".join(word[:longest] for word in text.split()[: self.context])

    def of(self, fields: Mapping[str, Any]) -> dict[str, list[str]]:
        """The captions of a sample, in order, and the hard captions of each.

        Args:
            fields: `txt` and `json` of the sample, decoded and checked (see `viewshards.sample`).

        Raises:
            ValueError: if there is none.
        """
        if not (found := self._found(fields, self.languages)):
            spoken = f" in language {' or '.join(map(repr, self.languages))}" if self.languages else ""
            raise ValueError(f"no caption{spoken} in {', '.join(self.fields)}")
        return found

    def _found(self, fields: Mapping[str, Any], wanted: Sequence[str] = ()) -> dict[str, list[str]]:
        about = fields.get("json") or {}
        found: dict[str, list[str]] = {}
        for name in self.fields:
            if wanted and name != "captions":
                continue  # whose language is not known
            value = fields.get("txt") if name == "txt" else about.get(name)
            captions = texts({name: value}, name)
            if name == "captions":
                hard = about.get("hard_captions") or [[]] * len(captions)
                keep = list(range(len(captions)))
                if wanted:
                    languages = about.get("languages") or [None] * len(captions)
                    first = next((each for each in wanted if each in spoken_in(about)), None)
                    keep = [i for i in keep if first is not None and languages[i] == first]
                found |= {captions[i]: list(hard[i]) for i in keep if captions[i].strip() and captions[i] not in found}
            else:
                found |= {caption: [] for caption in captions if caption.strip() and caption not in found}
        return found

    def has(self, fields: Mapping[str, Any]) -> bool:
        """Whether the sample has a caption."""
        return bool(self._found(fields, self.languages))

    def none(self) -> dict[str, Any]:
        """What `draw` gives, of a sample without captions."""
        empty = {"text": [np.zeros(self.context, np.int64) for _ in self.augmentations]}
        if not self.hard:
            return empty
        ids, present = np.zeros((self.hard, self.context), np.int64), np.zeros(self.hard, bool)
        return {**empty, "hard_text": ids, "hard_present": present}

    def draw(self, fields: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """`text`: a (context,) array a view; with `hard`: `hard_text` (hard, context) and `hard_present` (hard,); with
        `duplicates`: `group`, the number of the drawn caption.
        """
        captions = self.of(fields)
        order = [list(captions)[i] for i in rng.permutation(len(captions))]
        caption = order[0]
        chosen = [order[v % len(order)] if self.distinct else caption for v in range(len(self.augmentations))]
        changes = zip(chosen, self.augmentations, strict=True)
        views = [said if change is None else change(said, rng) for said, change in changes]
        out: dict[str, Any] = {"text": list(self.tokens(views))}
        if self.duplicates:
            out["group"] = caption_number(caption)
        if self.hard:
            offered = captions[caption]
            wrong = [offered[i] for i in rng.permutation(len(offered))[: self.hard].tolist()]
            ids = np.zeros((self.hard, self.context), np.int64)
            if wrong:
                ids[: len(wrong)] = self.tokens(wrong)
            out |= {"hard_text": ids, "hard_present": np.arange(self.hard) < len(wrong)}
        return out

    def all(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """For evaluation: `text`, the first `every` captions as they are, `text_present` (every,), all as `captions`.

        A sample may have none: classes have names, too. `text_unspoken`: it has some, but none in `language`.

        And `cases` where the `.json` has them: the true caption and false ones by kind, as texts.
        """
        said = list(self._found(fields, self.languages))
        captions = said[: self.every]
        ids = np.zeros((self.every, self.context), np.int64)
        if captions:
            ids[: len(captions)] = self.tokens(captions)
        about = fields.get("json") or {}
        cases = {"cases": about["cases"]} if "cases" in about else {}
        return {
            "text": list(ids),
            "text_present": np.arange(self.every) < len(captions),
            "text_unspoken": np.array(not said and bool(self._found(fields))),
            "captions": said,
            **cases,
        }
