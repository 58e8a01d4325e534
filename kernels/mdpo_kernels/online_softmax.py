"""What the kernels share: one pass over a row's logits with the target kept out of the sum.

For a row of logits z with target y, m = max_{v≠y} z_v and S = Σ_{v≠y} exp(z_v − m), so S is at least 1 and

    logp = log σ(d)  and  1 − p = σ(−d)  with  d = (z_y − m) − log S.

No digit of 1 − p is lost for a confident token, neither here nor in the gradient, which is proportional to it. Where
there is no other token, or all of them are at −inf, m is float32's lowest number and S is 0: then p = 1. NaN, +inf
anywhere in a row and a row that is −inf throughout give NaN, as they do in PyTorch's log_softmax. All of it is float32.

Written with exp2, log and arithmetic alone: libdevice's tanh and log1p do not exist in Triton's interpreter, and exp2
is what a GPU has. exp costs 4 instructions more, for results below float32's normal numbers, which no sum here would
notice.
"""

from .backend import tl, triton


@triton.jit
def exp(x):
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def tanh(x):
    # Near 0 the quotient of exponentials cancels; there the [7/6] Padé approximant is exact to rounding.
    square = x * x
    numerator = x * (135135.0 + square * (17325.0 + square * (378.0 + square)))
    denominator = 135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))
    power = exp(-2.0 * tl.abs(x))
    quotient = (1.0 - power) / (1.0 + power)
    return tl.where(tl.abs(x) < 1.0, numerator / denominator, tl.where(x < 0.0, -quotient, quotient))


@triton.jit
def scale_and_cap(x, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """x → z = scale·x, or c·tanh(scale·x / c), and dz/dx divided by scale."""
    z = x * scale
    slope = 1.0
    if HAS_SOFTCAP:
        capped = tanh(z / softcap)
        z = softcap * capped
        slope = (1.0 - capped) * (1.0 + capped)
    return z, slope


@triton.jit
def others_of(z, column, target, columns):
    """z with −inf for the target and for what lies behind the row's last column."""
    return tl.where((column < columns) & (column != target), z, float("-inf"))


@triton.jit
def empty_lanes(BLOCK: tl.constexpr):
    """The running maximum and sum of BLOCK lanes before the first logit; finite, since −inf − −inf is NaN.

    The maximum is the lowest float32, not just a low number: it is what many mask with, and has to count as a logit.
    """
    return tl.full((BLOCK,), -3.4028234663852886e38, tl.float32), tl.zeros((BLOCK,), tl.float32)


@triton.jit
def add_lanes(lane_maximum, lane_total, z):
    """One more logit for each lane's running maximum and sum; −inf adds nothing. One exponential a logit."""
    power = exp(-tl.abs(z - lane_maximum))
    lane_total = tl.where(z > lane_maximum, lane_total * power + 1.0, lane_total + power)
    return tl.maximum(lane_maximum, z), lane_total


@triton.jit
def reduce_lanes(lane_maximum, lane_total):
    """The lanes' maxima and sums → the row's m and S."""
    maximum = tl.max(lane_maximum, 0)
    return maximum, tl.sum(lane_total * exp(lane_maximum - maximum), 0)


@triton.jit
def add_totals(maximum, total, more_maximum, more_total):
    """m and S of two parts of a row → those of both, and what the first part's S was multiplied by."""
    both = tl.maximum(maximum, more_maximum)
    rescale = exp(maximum - both)
    return both, total * rescale + more_total * exp(more_maximum - both), rescale


@triton.jit
def log_sigmoid(x):
    """log σ(x) and σ(−x), both exact to rounding at either end."""
    # log1p(e) = 2 artanh(e / (2 + e)) by its series: for e in [0, 1] the ninth term is below float32's rounding.
    power = exp(-tl.abs(x))
    ratio = power / (2.0 + power)
    square = ratio * ratio
    series = 1.0 / 13.0 + square * (1.0 / 15.0)
    series = 1.0 / 11.0 + square * series
    series = 1.0 / 9.0 + square * series
    series = 1.0 / 7.0 + square * series
    series = 1.0 / 5.0 + square * series
    series = 1.0 / 3.0 + square * series
    log1p = 2.0 * ratio * (1.0 + square * series)
    log_probability = tl.where(x < 0.0, x, 0.0) - log1p
    return log_probability, tl.where(x < 0.0, 1.0, power) / (1.0 + power)


@triton.jit
def log_prob(target_logit, maximum, total, scored):
    """logp, 1 − p, and (1 − p)/S, the factor that turns exp(z_v − m) into p_v; all 0 for a row that is not scored."""
    others = total != 0.0  # not "> 0": a row of NaN has to come out as NaN
    margin = (target_logit - maximum) - tl.log(tl.where(others, total, 1.0))
    alone = tl.where(tl.abs(target_logit) < float("inf"), float("inf"), float("nan"))
    margin = tl.where(target_logit == float("inf"), float("nan"), tl.where(others, margin, alone))
    log_probability, rest = log_sigmoid(tl.where(scored, margin, 0.0))
    rest = tl.where(scored, rest, 0.0)
    return tl.where(scored, log_probability, 0.0), rest, rest / tl.where(others, total, 1.0)


@triton.jit
def logit_gradient(z, slope, is_target, maximum, rest, factor, grad):
    """The gradient of `grad`·logp with respect to the logits of one block, from the statistics that log_prob left."""
    gradient = grad * slope * tl.where(is_target, rest, -factor * exp(z - maximum))
    return tl.where(rest == 0.0, 0.0, gradient)  # p = 1, or a row that is not scored, whose logits may be NaN
