"""Whose uncertainty can be trusted, where, and at what price.

Nothing in this room is believed by a certificate: it measures, it stretches bars, it shows. What a recalibrated model assumes
stands in its `assumptions`.
"""

from gpsafe.calibration.coverage import (
    Rate,
    Separate,
    Shell,
    distance_to_data,
    needed_scale,
    pointwise,
    ratios,
    separate,
    shells,
    simultaneous,
    total_std,
)
from gpsafe.calibration.metrics import (
    check_score,
    crps_gaussian,
    energy_score,
    interval_score,
    max_calibration_error,
    mean_absolute_calibration_error,
    miscalibration_area,
    nll_gaussian,
    pit,
    reliability,
    root_mean_squared_calibration_error,
    sharpness,
)
from gpsafe.calibration.recalibration import Conformal, Isotonic, Recalibrated, ScaledStd, conformal_quantile
from gpsafe.calibration.resampling import Estimated, bootstrap
from gpsafe.calibration.rollouts import moments, particles, windows
from gpsafe.calibration.shift import Adaptive, LikelihoodRatio, Weighted, likelihood_ratio
from gpsafe.calibration.study import Assessment, Study, calibrate
from gpsafe.calibration.theory import Theory, theory_band
from gpsafe.calibration.zoo import MODELS, Effort, Fitted, Fitter, fit

__all__ = [
    "MODELS",
    "Adaptive",
    "Assessment",
    "Conformal",
    "Effort",
    "Estimated",
    "Fitted",
    "Fitter",
    "Isotonic",
    "LikelihoodRatio",
    "Rate",
    "Recalibrated",
    "ScaledStd",
    "Separate",
    "Shell",
    "Study",
    "Theory",
    "Weighted",
    "bootstrap",
    "calibrate",
    "check_score",
    "conformal_quantile",
    "crps_gaussian",
    "distance_to_data",
    "energy_score",
    "fit",
    "interval_score",
    "likelihood_ratio",
    "max_calibration_error",
    "mean_absolute_calibration_error",
    "miscalibration_area",
    "moments",
    "needed_scale",
    "nll_gaussian",
    "particles",
    "pit",
    "pointwise",
    "ratios",
    "reliability",
    "root_mean_squared_calibration_error",
    "separate",
    "sharpness",
    "shells",
    "simultaneous",
    "theory_band",
    "total_std",
    "windows",
]
