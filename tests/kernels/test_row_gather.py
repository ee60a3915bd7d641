from __future__ import annotations

import mlx.core as mx
import numpy as np

from russet.kernels.row_gather import gather_rows


def test_rows_come_in_the_order_of_the_index_from_every_array():
    index = mx.array([4, 0, 4, 2], mx.int32)
    arrays = [mx.arange(15).reshape(5, 3), mx.arange(5, dtype=mx.float16), mx.arange(40).reshape(5, 2, 4)]
    for array, found in zip(arrays, gather_rows(index, *arrays), strict=True):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(np.array(found), np.array(array)[[4, 0, 4, 2]])
