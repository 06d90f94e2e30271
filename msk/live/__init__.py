"""The live canvas: points that follow pointers, a stream that follows the points, a stage in the browser or the notebook."""
from .follow import Follow
from .session import Session
from .widget import Stage

__all__ = ["Follow", "Session", "Stage"]
