"""One LightningModule a published method: encoders, heads, objective and the paper's defaults."""

from manyviews.methods.dcl import DCL
from manyviews.methods.method import Method
from manyviews.methods.multiview import MultiView
from manyviews.methods.simclr import SimCLR

__all__ = ["DCL", "Method", "MultiView", "SimCLR"]
