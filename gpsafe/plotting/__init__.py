"""One language for all pictures: a colour and a mark for each noun, light and dark, sizes of a paper, labels at the lines.

Functions take Axes and return them. Matplotlib is loaded when a name is first used, and no setting of it outlasts `style`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
