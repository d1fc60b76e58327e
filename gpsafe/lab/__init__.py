"""What the notebooks move: pictures that answer a control at once, and the small experiments behind them.

Nothing here is believed by anything else. Bounds, sets and certificates shown are those of the rooms that are.
"""

from gpsafe.lab.explorer import Choice, Explorer, Picture, Slider, Tiles, panels, show

__all__ = ["Choice", "Explorer", "Picture", "Slider", "Tiles", "panels", "show"]
