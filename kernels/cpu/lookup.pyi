import numpy as np
import numpy.typing as npt

def rows(
    file: npt.NDArray[np.uint8],
    row_ids: npt.NDArray[np.int32],
    K: int,
    format: int,  # noqa: A002
    recoding: str = "",
    table: npt.NDArray[np.uint8] | None = None,
) -> npt.NDArray[np.float32]: ...
