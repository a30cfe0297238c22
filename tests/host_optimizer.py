"""A stand-in for the extension's optimizer functions that runs the kernels' own arithmetic on the host.

What the door hands to the kernels (order, pointers, places of partial sums) is thereby tested without a GPU; what it
takes is checked by the compiled functions themselves, see tests/ops/test_lamb.py.
"""

import ctypes

CHUNK = 16384
_FIELDS = 7
_LETTERS = {"float32": b"f", "float16": b"h", "bfloat16": b"b"}
_WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}


def _float_at(address):
    return ctypes.c_float.from_address(address)


class HostOptimizer:
    """Has the names of ``bert_fast._C``; keyword names are those of csrc/module.cpp."""

    def __init__(self, harness):
        self.harness = harness
        harness.harness_squares.restype = ctypes.c_float
        harness.harness_clip_factor.restype = ctypes.c_float
        self.calls = []

    def optimizer_chunk(self):
        return CHUNK

    def _rows(self, tensors):
        return [tensors[i : i + _FIELDS] for i in range(0, len(tensors), _FIELDS)]

    def square_gradients_cuda(self, tensors, dtype, partials, device, stream):
        self.calls.append("square_gradients")
        for grad, *_, numel in self._rows(tensors):
            for begin in range(0, numel, CHUNK):
                address = grad + begin * _WIDTH[dtype]
                count = min(CHUNK, numel - begin)
                _float_at(partials).value = self.harness.harness_squares(
                    _LETTERS[dtype], ctypes.c_void_p(address), ctypes.c_int64(count), ctypes.c_int(256)
                )
                partials += 4

    def clip_factor_cuda(self, partials, count, max_norm, grad_scale, out, device, stream):
        self.calls.append("clip_factor")
        unscale = 1 / _float_at(grad_scale).value if grad_scale else 1.0
        norm = sum(_float_at(partials + 4 * i).value for i in range(count)) ** 0.5 * unscale
        _float_at(out).value = norm
        factor = self.harness.harness_clip_factor(ctypes.c_float(norm), ctypes.c_float(max_norm))
        _float_at(out + 4).value = factor * unscale

    def adam_cuda(
        self, tensors, beta1, beta2, eps, weight_decay, bias_correction, decoupled, lowest, highest, lr_pointer, lr,
        grad_factor, found_inf, adapt, squares, dtype, moment, device, stream,
    ):  # fmt: skip
        self.calls.append("lamb" if adapt else "adam")
        if found_inf and _float_at(found_inf).value:
            return
        settings = (ctypes.c_double * 6)(beta1, beta2, eps, weight_decay, lowest, highest)
        flags = (ctypes.c_int * 4)(bias_correction, decoupled, adapt, False)
        rate = _float_at(lr_pointer).value if lr_pointer else lr
        scale = _float_at(grad_factor).value if grad_factor else 1.0
        for *addresses, step, numel in self._rows(tensors):
            self.harness.harness_optimizer(
                _LETTERS[dtype] + _LETTERS[moment],
                *(ctypes.c_void_p(a) for a in addresses),
                ctypes.c_int64(numel),
                settings,
                flags,
                *(ctypes.c_float(x) for x in (_float_at(step).value if numel else 0.0, scale, rate)),
                ctypes.c_int(256),
            )
