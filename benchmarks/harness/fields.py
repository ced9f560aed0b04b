"""Each topic of BBC news as a domain: its documents, and two tasks in it.

`about`: is this sentence of the topic? Half are, half are of the other four. `opening`: is this
sentence of the topic one of the first two of its document, or does it come later than the fourth?
Labels are what the documents say. Titles are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.harness import workload
from benchmarks.harness.tasks import Labelled, Material, Question
from demo.news import Document as Article
from demo.news import News, body_of
from smile.model.skip.distill.documents import Document
from smile.model.tokenizer import TextTokenizer

IS_IT = Question("is_it", ("no", "yes"), {0: 0, 1: 1})
OPENING = 2  # sentences
LATER = 4


@dataclass(frozen=True, slots=True)
class Field:
    """A topic's documents by their sentences, and some of the other topics' sentences."""

    documents: tuple[tuple[str, ...], ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, articles: Sequence[Article], topic: str) -> Field:
        """Of one half of the news."""
        own: list[tuple[str, ...]] = []
        others: list[str] = []
        for article in articles:
            _, _, text = body_of(article).partition("\n")
            sentences = tuple(workload.sentences_of(text))
            if article.topic == topic:
                own.append(sentences)
            else:
                others += sentences
        return cls(tuple(own), tuple(others))

    def about(self, count: int, tokenizer: TextTokenizer, seed: int) -> Labelled:
        """Sentences, half of them of the topic."""
        random = np.random.default_rng(seed)
        own = [sentence for document in self.documents for sentence in document]
        pairs = [(own[n], 1) for n in random.permutation(len(own))[: count // 2]]
        taken = random.permutation(len(self.others))[: len(pairs)]
        pairs += [(self.others[n], 0) for n in taken]
        return _labelled(pairs, tokenizer, random)

    def opening(self, count: int, tokenizer: TextTokenizer, seed: int) -> Labelled:
        """Sentences that open their document, and as many that come later."""
        random = np.random.default_rng(seed)
        first = [one for document in self.documents for one in document[:OPENING]]
        later = [one for document in self.documents for one in document[LATER:]]
        most = min(count // 2, len(first), len(later))
        pairs = [(first[n], 1) for n in random.permutation(len(first))[:most]]
        pairs += [(later[n], 0) for n in random.permutation(len(later))[:most]]
        return _labelled(pairs, tokenizer, random)


def materials(
    news: News, topic: str, tokenizer: TextTokenizer, counts: tuple[int, int]
) -> tuple[Material, ...]:
    """Both tasks of a topic: `counts` texts to learn from and held out."""
    halves = Field.of(news.train, topic), Field.of(news.held_out, topic)
    (learn, ask), (learnt, asked) = counts, halves
    return (
        Material(
            f"{topic}_about",
            learnt.about(learn, tokenizer, 1),
            asked.about(ask, tokenizer, 1),
            (IS_IT,),
        ),
        Material(
            f"{topic}_opening",
            learnt.opening(learn, tokenizer, 2),
            asked.opening(ask, tokenizer, 2),
            (IS_IT,),
        ),
    )


def corpus(articles: Sequence[Article], topic: str, most: int) -> list[Document]:
    """At most so many whole documents of a topic."""
    return [Document(body_of(one), topic) for one in articles if one.topic == topic][:most]


def _labelled(
    pairs: Sequence[tuple[str, int]], tokenizer: TextTokenizer, random: np.random.Generator
) -> Labelled:
    order = random.permutation(len(pairs))
    texts = tokenizer.encode([pairs[n][0] for n in order], truncate=True)
    return Labelled(tuple(texts), tuple(pairs[n][1] for n in order))
