"""P9: a large model on a GPU; `python -m benchmarks.gpu --help`.

`batch` is the work for one batch, captured as a CUDA graph; `arrivals` puts requests on it as they come; `measure`
looks for the highest rate that is answered in time.
"""
