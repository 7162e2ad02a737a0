// Class ids of bilinearly upsampled scores, without the upsampled scores: one thread a pixel.
//
// The same source compiles for a GPU (nvcc or NVRTC) and, for the tests, for the host (g++ with
// -ffp-contract=off). Products and sums are rounded one by one, so that both give the same bits.

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define PRODUCT(a, b) __fmul_rn(a, b)
#define SUM(a, b) __fadd_rn(a, b)
#else
#define DEVICE static inline
#define PRODUCT(a, b) ((a) * (b))
#define SUM(a, b) ((a) + (b))
#endif

// One axis of the upsampling is, for each output: the sample before it, and the weights of that
// one and of the next, which sum to one.
struct HeadArguments {
    const float *scores;       // [images, classes, height, width]
    const int *row_cells;      // [out_height]
    const float *row_near;     // [out_height]
    const float *row_far;      // [out_height]
    const int *column_cells;   // [out_width]
    const float *column_near;  // [out_width]
    const float *column_far;   // [out_width]
    void *labels;              // uint8, above 256 classes uint16, [images, out_height, out_width]
    int *tainted;              // becomes 1 where a score is NaN or infinite
    int images, classes, height, width, out_height, out_width;
    float threshold;           // of a single class's score: label 1 above it
    int wide;                  // whether labels are uint16
};

DEVICE bool head_is_finite(float value) { return value - value == 0.0f; }

DEVICE void head_pixel(const HeadArguments &a, int image, int y, int x) {
    const int above = a.row_cells[y], below = above + 1 < a.height ? above + 1 : above;
    const int left = a.column_cells[x], right = left + 1 < a.width ? left + 1 : left;
    const float near_y = a.row_near[y], far_y = a.row_far[y];
    const float near_x = a.column_near[x], far_x = a.column_far[x];
    const long long plane = (long long)a.height * a.width;
    const float *scores = a.scores + image * a.classes * plane;
    const long long top = (long long)above * a.width, bottom = (long long)below * a.width;
    float best = a.threshold;
    int label = 0;
    bool finite = true;
    for (int c = 0; c < a.classes; ++c, scores += plane) {
        const float s00 = scores[top + left], s01 = scores[top + right];
        const float s10 = scores[bottom + left], s11 = scores[bottom + right];
        finite = finite && head_is_finite(s00) && head_is_finite(s01) && head_is_finite(s10) &&
                 head_is_finite(s11);
        const float at_left = SUM(PRODUCT(near_y, s00), PRODUCT(far_y, s10));
        const float at_right = SUM(PRODUCT(near_y, s01), PRODUCT(far_y, s11));
        const float value = SUM(PRODUCT(near_x, at_left), PRODUCT(far_x, at_right));
        if (a.classes == 1) {
            label = value > best;
        } else if (c == 0 || value > best) {  // ties go to the lowest class
            best = value;
            label = c;
        }
    }
    const long long pixel = ((long long)image * a.out_height + y) * a.out_width + x;
    if (a.wide) {
        ((unsigned short *)a.labels)[pixel] = (unsigned short)label;
    } else {
        ((unsigned char *)a.labels)[pixel] = (unsigned char)label;
    }
    if (!finite) *a.tainted = 1;  // every thread that writes, writes the same
}

#ifdef __CUDACC__
extern "C" __global__ void head_labels(HeadArguments a) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x < a.out_width && y < a.out_height) head_pixel(a, blockIdx.z, y, x);
}
#else
extern "C" void head_labels_on_host(const HeadArguments *a) {
    for (int image = 0; image < a->images; ++image)
        for (int y = 0; y < a->out_height; ++y)
            for (int x = 0; x < a->out_width; ++x) head_pixel(*a, image, y, x);
}
#endif
