// A projection that is added to a residual.
#define RESIDUAL
