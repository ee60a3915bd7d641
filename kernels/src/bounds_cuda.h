// A threadgroup has 512 threads at most: without the bound a thread may take more registers than so many can have.
#undef __global__
#define __global__ __attribute__((global)) __attribute__((launch_bounds(512)))
