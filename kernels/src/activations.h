// What is applied to a gate: 1 SiLU, 2 GELU by tanh, 3 ReLU, 4 GELU by the error function.
template <int ACT> inline float activated(float x) {
  if (ACT == 1) return x / (1.0f + metal::exp(-x));
  if (ACT == 2) return x / (1.0f + metal::exp(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
  if (ACT == 3) return x > 0.0f ? x : 0.0f;
  // erf, Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most.
  const float z = (x < 0.0f ? -x : x) * 0.7071067811865476f, t = 1.0f / (1.0f + 0.3275911f * z);
  const float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const float erf = 1.0f - tail * metal::exp(-z * z);
  return 0.5f * x * (1.0f + (x < 0.0f ? -erf : erf));
}
