"""Protocols that put a number on frozen features: the same code as a callback and as a command."""

from manyviews.evaluation.callback import Evaluation
from manyviews.evaluation.close import TextToImage
from manyviews.evaluation.composition import Composition
from manyviews.evaluation.features import Features, extract
from manyviews.evaluation.fewshot import FewShot
from manyviews.evaluation.joint import JointProtocol, TextRetrieval, ZeroShot
from manyviews.evaluation.knn import KNN
from manyviews.evaluation.linear import LinearProbe, LogisticRegression
from manyviews.evaluation.outliers import Outliers
from manyviews.evaluation.protocol import Protocol, Result
from manyviews.evaluation.retrieval import Retrieval

__all__ = [
    "KNN",
    "Composition",
    "Evaluation",
    "Features",
    "FewShot",
    "JointProtocol",
    "LinearProbe",
    "LogisticRegression",
    "Outliers",
    "Protocol",
    "Result",
    "Retrieval",
    "TextRetrieval",
    "TextToImage",
    "ZeroShot",
    "extract",
]
