// Metal needs no bound on the threads of a threadgroup: see bounds_cuda.h.
