/* Sends a one-row matrix product to the BLAS's matrix-vector routine.
 *
 * MLX multiplies a row by a matrix with cblas_sgemm, and OpenBLAS on x86-64 packs the whole matrix for that as it would
 * for many rows. Its sgemv reads the matrix once. A decoded token is nothing but such products.
 */

typedef void (*gemm_t)(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);
typedef void (*gemv_t)(int, int, int, int, float, const float *, int, const float *, int, float, float *, int);

enum { row_major = 101, plain = 111, transposed = 112 };

/* Below this many matrix elements OpenBLAS has a product that packs nothing. */
enum { small = 400000 };

static gemm_t gemm;
static gemv_t gemv;

void russet_use(gemm_t g, gemv_t v) {
    gemm = g;
    gemv = v;
}

void russet_sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                  const float *b, int ldb, float beta, float *c, int ldc) {
    if (order == row_major && m == 1 && (long)n * k >= small) {
        int rows = tb == transposed ? n : k, columns = tb == transposed ? k : n;
        gemv(order, tb == transposed ? plain : transposed, rows, columns, alpha, b, ldb, a, ta == plain ? 1 : lda, beta,
             c, 1);
    } else {
        gemm(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    }
}
