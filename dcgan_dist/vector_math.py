"""Make the vector functions of PyTorch's CPU build give the same bits from the first call on.

PyTorch computes `tanh`, `exp`, `log`, `erf` and their like with MKL's vector functions. All of them choose their
kernel by one variable of the process, which their first call sets in two steps: it stores the number of the processor
as detected, then the number of the kernels for it. A second thread that reads the variable between the two takes
kernels for another processor, whose last bits differ. One call on one thread ends this for all of them. (Disassembled:
`mkl_vml_serv_cpu_detect` of MKL 2024.2 in PyTorch 2.13; 384 functions call it.)

The call is made on import, and every package that computes imports this module first (a test sees to that), so that no
process can forget it: training, Ray's workers, pools, sampling, evaluation, sweeps. `python -m tests.stress` shows what
happens without it.
"""

import torch

torch.tanh(torch.zeros(1))  # one element: never shared out to threads
