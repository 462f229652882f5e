#include "layer.h"

#include <atomic>
#include <type_traits>

#include "backward.h"
#include "callers.h"
#include "forked.h"
#include "forward.h"
#include "plan.h"

namespace sstkern {

namespace {

std::atomic<int64_t> forward_runs{0}, backward_runs{0};

// Calls run(T{}) with the type that a call with tensors like `x` computes in.
template <class Run>
auto in_compute_type(const Tensor& x, const Run& run) {
  const ScalarType type = compute_type(x.scalar_type());
  SSTKERN_CHECK(type == ScalarType::Float || type == ScalarType::Double, "x: expected float32, float64, bfloat16 or float16, got ",
                x.scalar_type());
  return type == ScalarType::Float ? run(float{}) : run(double{});
}

}  // namespace

LayerResult layer(const std::string& cell, const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& hx,
                  const std::optional<Tensor>& lengths, bool has_bias, bool bidirectional, std::optional<int64_t> saved_rows, bool every) {
  const OneThreadIfForked guard;
  const CallThreads threads;
  return in_compute_type(x, [&](auto type) {
    const Arguments<decltype(type)> arguments(cell, Phase::forward, x, weights, hx, lengths, has_bias, bidirectional);
    LayerResult result = run_forward(arguments, saved_rows, every);
    count_run(false);
    return result;
  });
}

std::vector<Tensor> layer_backward(const std::string& cell, const Tensor& x, const std::vector<Tensor>& weights,
                                   const std::vector<Tensor>& hx, const std::optional<Tensor>& lengths, bool has_bias, bool bidirectional,
                                   const Tensor& output, const std::vector<Tensor>& saved, const std::optional<Tensor>& grad_output,
                                   const std::vector<Tensor>& grad_hx, const std::vector<bool>& needs, std::optional<int64_t> groups) {
  const OneThreadIfForked guard;
  const CallThreads threads;
  return in_compute_type(x, [&](auto type) {
    const Arguments<decltype(type)> arguments(cell, Phase::backward, x, weights, hx, lengths, has_bias, bidirectional);
    const BackwardArguments given{output, saved, grad_output, grad_hx, needs};
    check_backward(arguments, given);
    std::optional<Groups> rows_of_groups;
    if (groups.has_value()) rows_of_groups = arguments.schedule.rows_of_groups(*groups);
    std::vector<Tensor> gradients = run_backward(arguments, given, rows_of_groups);
    count_run(true);
    return gradients;
  });
}

void count_run(bool backward) { ++(backward ? backward_runs : forward_runs); }

std::vector<int64_t> cpu_runs() { return {forward_runs, backward_runs, latest_threads()}; }

}  // namespace sstkern
