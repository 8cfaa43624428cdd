"""Right arguments made wrong, for the tests of the last Python before a C++ kernel."""

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from rwm_fast.ops._dispatch import BackendError
from rwm_fast.testing.cases import in_layout

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FATES = (
    *("keep",) * 40,  # most arguments stay right, so that a wrong one meets right ones
    *("dtype", "integers", "complex", "meta", "sparse", "fewer", "more", "flat", "transposed"),
    *("sliced", "expanded", "negative", "fake", "zero", "none", "list", "number", "empty"),
)


def spoil(x: torch.Tensor, fate: str, dtype: torch.dtype) -> object:
    """The argument, kept or changed: some changes are harmless, most are not."""
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x) if fate == "fake" else None
    changed = {
        "dtype": lambda: x.to(dtype),
        "integers": lambda: x.long(),
        "complex": lambda: x.to(torch.complex64),
        "meta": lambda: x.to("meta"),
        "sparse": lambda: x.to_sparse(),
        "fewer": lambda: x[..., :-1] if x.ndim else x,
        "more": lambda: torch.cat((x, x)) if x.ndim else x,
        "flat": lambda: x.reshape(-1),
        "transposed": lambda: x.transpose(0, -1) if x.ndim else x,
        "sliced": lambda: in_layout(x, "sliced"),
        "expanded": lambda: in_layout(x, "expanded"),
        "negative": lambda: torch.complex(x.float(), x.float()).conj().imag,
        "fake": lambda: fake,
        "zero": lambda: torch._efficientzerotensor(x.shape, dtype=x.dtype),
        "none": lambda: None,
        "list": lambda: x.tolist(),
        "number": lambda: 3,
        "empty": lambda: x[:0] if x.ndim else x,
    }
    return changed[fate]() if fate in changed else x


fates = st.lists(st.sampled_from(FATES), min_size=5, max_size=5)
sizes = st.integers(1, 9)
whole = st.sampled_from([1, 2, 3, 5, 8, 16, 31, 0, -1, True, 2.0, None, "4", 1 << 62])
any_dtype = st.sampled_from([*DTYPES, torch.int32, torch.complex64])
examples = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def attempt(function, *arguments):
    """The result, or None where the call was refused in the way that callers may rely on."""
    try:
        return function(*arguments)
    except (TypeError, ValueError, BackendError):
        return None
    except AssertionError as error:
        assert "fake" in str(error).lower(), error  # torch itself: no fake tensor beside a real one
        return None
    except RuntimeError as error:
        # torch itself: more memory than there is, or a tensor that has none or no numbers.
        assert any(
            word in str(error)
            for word in ("memory", "overflow", "parse", "storage", "invalid", "local_scalar")
        ), error
        return None
