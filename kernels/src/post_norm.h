// norm_matvec with another norm and a residual addition in front.
#define POST_NORM
