"""Protocols that put a number on frozen features: the same code as a callback and as a command."""

from manyviews.evaluation.accuracy import Accuracy
from manyviews.evaluation.callback import Evaluation
from manyviews.evaluation.close import TextToImage
from manyviews.evaluation.composition import ARO, Composition
from manyviews.evaluation.cost import Cost
from manyviews.evaluation.features import Features, extract
from manyviews.evaluation.fewshot import FewShot
from manyviews.evaluation.joint import JointProtocol
from manyviews.evaluation.knn import KNN
from manyviews.evaluation.linear import LinearProbe, LogisticRegression
from manyviews.evaluation.outliers import Outliers
from manyviews.evaluation.protocol import Protocol, Result
from manyviews.evaluation.retrieval import Retrieval
from manyviews.evaluation.svm import FewShotSVM, LinearSVM
from manyviews.evaluation.textretrieval import TextRetrieval
from manyviews.evaluation.zeroshot import ZeroShot

__all__ = [
    "ARO",
    "KNN",
    "Accuracy",
    "Composition",
    "Cost",
    "Evaluation",
    "Features",
    "FewShot",
    "FewShotSVM",
    "JointProtocol",
    "LinearProbe",
    "LinearSVM",
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
