"""Make the vector functions of PyTorch's CPU build return the same bits from the first call on.

PyTorch computes `tanh`, `exp`, `log`, `erf` and similar functions with MKL's vector functions. These choose their
kernel by one variable of the process. Their first call sets it in two steps: first to the number of the detected
processor, then to the number of the kernels for it. A second thread that reads the variable between the two steps
takes the kernels for another processor, whose results differ in the last bits. After one call on one thread, the
variable is set for all functions. (Found by disassembly: `mkl_vml_serv_cpu_detect` of MKL 2024.2 in PyTorch 2.13, which
384 functions call.)

The call is made on import, and every package that computes imports this module first (a test checks that), so that no
process can forget it: training, Ray's workers, pools, sampling, evaluation, sweeps. `python -m tests.stress` shows what
happens without it.
"""

import torch

torch.tanh(torch.zeros(1))  # one element, so that it is never split over threads
