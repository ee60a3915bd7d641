// sigmoid(x) times 2^12, where y is -x / ln 2 - 12. The factor keeps small weights in float16's normal range, and
// leaves the sums at their end. With a bias of -log n, a weight is about 1 / n.
inline float scaled_sigmoid(float y) { return quick_reciprocal((1.0f / 4096.0f) + quick_exp2(y)); }

// The part of y that the query's row sets: rule holds scale, bias, and how much of log(visible keys) the bias loses.
inline float sigmoid_offset(float bias, float weight, uint visible) {
  return weight * metal::log2(float(visible)) - bias * 1.44269504f - 12.0f;
}
