// Batch normalisation and depthwise convolution of bfloat16 images in channels_last order, on one thread.
// All sums are in float32 or better. Vectors are those of GCC and Clang, of whatever width the machine has.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using bf16 = uint16_t;
constexpr int64_t LANES = 16;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

inline Floats load(const bf16* from) {
    Halves half;
    std::memcpy(&half, from, sizeof half);
    return (Floats)(__builtin_convertvector(half, Words) << 16);
}

inline Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline void store(bf16* to, Floats values) {
    Words word = (Words)values;
    word += 0x7fff + ((word >> 16) & 1);  // to nearest, ties to even
    const Halves half = __builtin_convertvector(word >> 16, Halves);
    std::memcpy(to, &half, sizeof half);
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline Floats relu(Floats values) { return values < 0 ? Floats{} : values; }

// ---- Batch normalisation ----------------------------------------------------------------------------------
//
// Images are read as rows of as many whole positions as fill strips of 64 values: lane j of a row always
// belongs to channel j mod C, however few channels there are.

constexpr int64_t VECTORS = 4;
constexpr int64_t STRIP = VECTORS * LANES;
constexpr int64_t BLOCK = 1 << 13;  // values that are gone through strip by strip while they are in cache

struct Rows {
    int64_t count, lanes, channels;

    Rows(int64_t positions, int64_t channels, int64_t together)
        : count(positions / together), lanes(channels * together), channels(channels) {}

    // Call visit(offset of the strip's first value, its first lane, rows) for each strip of each block.
    template <typename Visit>
    void strips(Visit visit) const {
        const int64_t height = std::max<int64_t>(1, BLOCK / lanes);
        for (int64_t first = 0; first < count; first += height) {
            const int64_t rows = std::min(height, count - first);
            for (int64_t lane = 0; lane < lanes; lane += STRIP) visit(first * lanes + lane, lane, rows);
        }
    }

    std::vector<float> spread(const float* of_channels) const {
        std::vector<float> values(lanes);
        for (int64_t lane = 0; lane < lanes; ++lane) values[lane] = of_channels[lane % channels];
        return values;
    }

    std::vector<double> gather(const std::vector<double>& of_lanes) const {
        std::vector<double> values(channels);
        for (int64_t lane = 0; lane < lanes; ++lane) values[lane % channels] += of_lanes[lane];
        return values;
    }
};

struct Strip {
    Floats at[VECTORS];

    explicit Strip(const float* from) {
        for (int v = 0; v < VECTORS; ++v) at[v] = load(from + v * LANES);
    }
    Strip() : at{} {}

    void add_to(double* totals) const {
        for (int v = 0; v < VECTORS; ++v)
            for (int lane = 0; lane < LANES; ++lane) totals[v * LANES + lane] += at[v][lane];
    }
};

template <bool RELU, bool RESIDUAL>
void normalise(const Rows& rows, const bf16* x, const bf16* residual, const float* factors, const float* terms,
               bf16* y) {
    const auto factor = rows.spread(factors), term = rows.spread(terms);
    rows.strips([&](int64_t offset, int64_t lane, int64_t count) {
        const Strip a(&factor[lane]), b(&term[lane]);
        for (int64_t row = 0; row < count; ++row, offset += rows.lanes)
            for (int v = 0; v < VECTORS; ++v) {
                const int64_t i = offset + v * LANES;
                Floats values = load(x + i) * a.at[v] + b.at[v];
                if (RESIDUAL) values += load(residual + i);
                store(y + i, RELU ? relu(values) : values);
            }
    });
}

// Gradients of the sum before the ReLU. Its sign is that of y; without a residual it is quicker made anew.
template <bool RELU, bool RESIDUAL>
inline Floats before_relu(const bf16* gradient, const bf16* y, Floats sum, int64_t i) {
    const Floats g = load(gradient + i);
    if (!RELU) return g;
    return (RESIDUAL ? load(y + i) : sum) > 0 ? g : Floats{};
}

template <bool RELU, bool RESIDUAL>
void backward(const Rows& rows, const bf16* gradient, const bf16* x, const bf16* y, const float* weight,
              const float* bias, const float* mean, const float* scale, bf16* dx, bf16* dresidual,
              float* dweight, float* dbias) {
    const int64_t channels = rows.channels;
    std::vector<float> a(channels), b(channels), p(channels), q(channels);
    for (int64_t c = 0; c < channels; ++c) {
        a[c] = weight[c] * scale[c];
        b[c] = bias[c] - mean[c] * a[c];
    }
    const auto factor = rows.spread(a.data()), term = rows.spread(b.data()), centre = rows.spread(mean);
    std::vector<double> sums(rows.lanes), products(rows.lanes);
    rows.strips([&](int64_t offset, int64_t lane, int64_t count) {
        const Strip f(&factor[lane]), t(&term[lane]), m(&centre[lane]);
        Strip sum, product;
        for (int64_t row = 0; row < count; ++row, offset += rows.lanes)
            for (int v = 0; v < VECTORS; ++v) {
                const int64_t i = offset + v * LANES;
                const Floats value = load(x + i);
                const Floats g =
                    before_relu<RELU, RESIDUAL>(gradient, y, value * f.at[v] + t.at[v], i);
                if (RELU && RESIDUAL) store(dresidual + i, g);
                sum.at[v] += g;
                product.at[v] += g * (value - m.at[v]);
            }
        sum.add_to(&sums[lane]);
        product.add_to(&products[lane]);
    });
    const auto total = rows.gather(sums), moment = rows.gather(products);
    const double n = double(rows.count) * double(rows.lanes) / double(channels);
    for (int64_t c = 0; c < channels; ++c) {
        dbias[c] = float(total[c]);
        dweight[c] = float(moment[c] * scale[c]);
        const double slope = -double(a[c]) * scale[c] * scale[c] * moment[c] / n;
        p[c] = float(slope);
        q[c] = float(-a[c] * total[c] / n - slope * mean[c]);
    }
    const auto slope = rows.spread(p.data()), level = rows.spread(q.data());
    constexpr bool AGAIN = RELU && !RESIDUAL;
    const bf16* g_from = RELU && RESIDUAL ? dresidual : gradient;
    rows.strips([&](int64_t offset, int64_t lane, int64_t count) {
        const Strip f(&factor[lane]), t(&term[lane]), s(&slope[lane]), l(&level[lane]);
        for (int64_t row = 0; row < count; ++row, offset += rows.lanes)
            for (int v = 0; v < VECTORS; ++v) {
                const int64_t i = offset + v * LANES;
                const Floats value = load(x + i);
                const Floats g = before_relu<AGAIN, false>(g_from, y, value * f.at[v] + t.at[v], i);
                store(dx + i, g * f.at[v] + value * s.at[v] + l.at[v]);
            }
    });
}

// ---- Depthwise convolution --------------------------------------------------------------------------------

struct Shape {
    int64_t images, channels, height, width, out_height, out_width, stride, padding;
};

// One block of channels of one image in float32, zeros around and, with a step, between its positions.
class Plane {
  public:
    Plane(int64_t height, int64_t width) : width_(width), values_(height * width * LANES) {}

    void fill(const bf16* image, int64_t height, int64_t width, int64_t channels, int64_t first, int64_t border,
              int64_t step) {
        const int64_t lanes = std::min(LANES, channels - first);
        for (int64_t y = 0; y < height; ++y)
            for (int64_t x = 0; x < width; ++x) {
                const bf16* from = image + (y * width + x) * channels + first;
                float* to = &values_[((border + y * step) * width_ + border + x * step) * LANES];
                if (lanes == LANES) {
                    store(to, load(from));
                    continue;
                }
                for (int64_t lane = 0; lane < LANES; ++lane) {
                    const uint32_t word = lane < lanes ? uint32_t(from[lane]) << 16 : 0;
                    std::memcpy(to + lane, &word, sizeof word);
                }
            }
    }

    const float* at(int64_t y, int64_t x) const { return &values_[(y * width_ + x) * LANES]; }

  private:
    int64_t width_;
    std::vector<float> values_;
};

constexpr int64_t COLUMNS = 8;  // results at a time: as many sums as hide an addition's latency

// Correlate a plane with the (K, K, LANES) kernel; write (height, width) of an image from channel `first` on.
template <int K>
void correlate(const Plane& plane, const float* kernel, bf16* image, int64_t height, int64_t width,
               int64_t channels, int64_t first) {
    const int64_t lanes = std::min(LANES, channels - first);
    for (int64_t y = 0; y < height; ++y)
        for (int64_t x = 0; x < width; x += COLUMNS) {
            Floats sums[COLUMNS] = {};
            for (int64_t i = 0; i < K; ++i)
                for (int64_t j = 0; j < K; ++j) {
                    const Floats w = load(kernel + (i * K + j) * LANES);
                    const float* from = plane.at(y + i, x + j);
                    for (int64_t c = 0; c < COLUMNS; ++c) sums[c] += w * load(from + c * LANES);
                }
            for (int64_t c = 0; c < std::min(COLUMNS, width - x); ++c) {
                bf16 narrow[LANES];
                store(narrow, sums[c]);
                std::memcpy(image + (y * width + x + c) * channels + first, narrow, lanes * sizeof(bf16));
            }
        }
}

// The gradient by the input: the output's, as far apart as the stride is, correlated with the kernel flipped.
template <int K>
void depthwise_input(const Shape& s, const bf16* dy, const float* weight, bf16* dx) {
    // Columns beyond the last are computed and dropped.
    Plane plane(s.height + 2 * K, s.width + 2 * K + COLUMNS);
    std::vector<float> kernel(K * K * LANES);
    for (int64_t first = 0; first < s.channels; first += LANES) {
        for (int64_t k = 0; k < K * K; ++k)
            for (int64_t lane = 0; lane < LANES; ++lane)
                kernel[k * LANES + lane] =
                    first + lane < s.channels ? weight[(first + lane + 1) * K * K - 1 - k] : 0;
        for (int64_t n = 0; n < s.images; ++n) {
            plane.fill(dy + n * s.out_height * s.out_width * s.channels, s.out_height, s.out_width, s.channels,
                       first, K - 1 - s.padding, s.stride);
            correlate<K>(plane, kernel.data(), dx + n * s.height * s.width * s.channels, s.height, s.width,
                         s.channels, first);
        }
    }
}

template <int K>
void depthwise_weight(const Shape& s, const bf16* x, const bf16* dy, float* dweight) {
    Plane plane(s.height + 2 * s.padding, s.width + 2 * s.padding), outer(s.out_height, s.out_width);
    for (int64_t first = 0; first < s.channels; first += LANES) {
        std::vector<Floats> totals(K * K);
        for (int64_t n = 0; n < s.images; ++n) {
            plane.fill(x + n * s.height * s.width * s.channels, s.height, s.width, s.channels, first, s.padding, 1);
            outer.fill(dy + n * s.out_height * s.out_width * s.channels, s.out_height, s.out_width, s.channels,
                       first, 0, 1);
            for (int64_t i = 0; i < K; ++i) {
                Floats sums[K] = {};
                for (int64_t row = 0; row < s.out_height; ++row)
                    for (int64_t column = 0; column < s.out_width; ++column) {
                        const Floats g = load(outer.at(row, column));
                        const float* from = plane.at(row * s.stride + i, column * s.stride);
                        for (int64_t j = 0; j < K; ++j) sums[j] += g * load(from + j * LANES);
                    }
                for (int64_t j = 0; j < K; ++j) totals[i * K + j] += sums[j];
            }
        }
        for (int64_t lane = 0; lane < std::min(LANES, s.channels - first); ++lane)
            for (int64_t k = 0; k < K * K; ++k) dweight[(first + lane) * K * K + k] = totals[k][lane];
    }
}

}  // namespace

// Kernels of the sizes that networks have; the caller keeps to them.
#define WITH_KERNEL_SIZE(size, call)           \
    switch (size) {                            \
        case 3: { constexpr int K = 3; call; break; } \
        case 5: { constexpr int K = 5; call; break; } \
        case 7: { constexpr int K = 7; call; break; } \
    }

extern "C" {

// Write y = act(weight * (x - mean) / sqrt(var + eps) + bias + residual), the mean and 1 / sqrt(var + eps).
void normalise_forward(int64_t positions, int64_t channels, int64_t together, const bf16* x,
                       const bf16* residual, const float* weight, const float* bias, double eps, bool with_relu,
                       bf16* y, float* mean, float* scale) {
    const Rows rows(positions, channels, together);
    // Squares of differences from any value near the mean, so that a large mean doesn't cancel.
    std::vector<float> near(channels);
    for (int64_t c = 0; c < channels; ++c) {
        const uint32_t word = uint32_t(x[c]) << 16;
        std::memcpy(&near[c], &word, sizeof word);
    }
    const auto origin = rows.spread(near.data());
    std::vector<double> sums(rows.lanes), squares(rows.lanes);
    rows.strips([&](int64_t offset, int64_t lane, int64_t count) {
        const Strip o(&origin[lane]);
        Strip sum, square;
        for (int64_t row = 0; row < count; ++row, offset += rows.lanes)
            for (int v = 0; v < VECTORS; ++v) {
                const Floats difference = load(x + offset + v * LANES) - o.at[v];
                sum.at[v] += difference;
                square.at[v] += difference * difference;
            }
        sum.add_to(&sums[lane]);
        square.add_to(&squares[lane]);
    });
    const auto total = rows.gather(sums), power = rows.gather(squares);
    std::vector<float> factors(channels), terms(channels);
    for (int64_t c = 0; c < channels; ++c) {
        const double shift = total[c] / double(positions);
        const double variance = power[c] / double(positions) - shift * shift;
        mean[c] = float(near[c] + shift);
        scale[c] = float(1 / std::sqrt(std::max(variance, 0.0) + eps));
        factors[c] = weight[c] * scale[c];
        terms[c] = bias[c] - mean[c] * factors[c];
    }
    const auto call = with_relu ? (residual ? normalise<true, true> : normalise<true, false>)
                                : (residual ? normalise<false, true> : normalise<false, false>);
    call(rows, x, residual, factors.data(), terms.data(), y);
}

// `y` and `dresidual` are read and written only after a residual with ReLU.
void normalise_backward(int64_t positions, int64_t channels, int64_t together, const bf16* gradient,
                        const bf16* x, const bf16* y, const float* weight, const float* bias, const float* mean,
                        const float* scale, bool with_relu, bf16* dx, bf16* dresidual, float* dweight,
                        float* dbias) {
    const Rows rows(positions, channels, together);
    const auto call = with_relu ? (dresidual ? backward<true, true> : backward<true, false>)
                                : backward<false, false>;
    call(rows, gradient, x, y, weight, bias, mean, scale, dx, dresidual, dweight, dbias);
}

void depthwise_input_gradient(const Shape* shape, int64_t kernel, const bf16* dy, const float* weight, bf16* dx) {
    WITH_KERNEL_SIZE(kernel, depthwise_input<K>(*shape, dy, weight, dx))
}

void depthwise_weight_gradient(const Shape* shape, int64_t kernel, const bf16* dy, const bf16* x,
                               float* dweight) {
    WITH_KERNEL_SIZE(kernel, depthwise_weight<K>(*shape, x, dy, dweight))
}
}
