// A guest behind a network, in C: the scores of its classes go in, the best class comes out, by number and by name.
//
// The names are in the data beside this guest (`[after] data` in a model.toml), one a line, as many as there are scores.
// What goes in is f32; what comes out:
//
//     class  i64 [1]            the number of the best class
//     score  f32 [1]            how sure that is: its share of the softmax
//     label  u8 [LABEL_BYTES]   its name, UTF-8, with zeros behind it
//
// segment.h is made of wit/ by `componentize --c-bindings`; what it declares beside the functions that are defined here
// is given by the host. Build it with arg-max/build.sh.

#include "segment.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LABEL_BYTES = 32, DATA_BYTES_MAX = 1 << 16, LABELS_MAX = 4096 };

// What `prepare` read: the names, one after the other, with zeros behind each.
static uint8_t names[LABELS_MAX][LABEL_BYTES];
static size_t names_count;

static bool fail(segment_string_t *error, const char *why) {
    segment_string_dup(error, why);
    return false;
}

// Says no with a text, which the host shows with the segment's name.
bool exports_edgent_segment_layers_prepare(segment_string_t *error) {
    // What stands in the place of a graph.
    segment_list_u8_t data;
    edgent_segment_own_graph_read(0, DATA_BYTES_MAX, &data);
    size_t length = 0;
    for (size_t at = 0; at < data.len; at++) {
        uint8_t byte = data.ptr[at];
        if (byte == '\n') {
            names_count += length > 0;
            length = 0;
        } else if (names_count == LABELS_MAX || length == LABEL_BYTES) {
            return fail(error, "there are too many names, or one is too long");
        } else {
            names[names_count][length++] = byte;
        }
    }
    names_count += length > 0;
    bool is_whole = data.len < DATA_BYTES_MAX;
    segment_list_u8_free(&data);
    return names_count > 0 && is_whole ? true : fail(error, "there are no names, or more than fit");
}

static wasi_nn_tensor_own_tensor_t tensor(uint32_t elements, uint8_t type, const void *bytes, size_t count) {
    wasi_nn_tensor_tensor_dimensions_t dimensions = {&elements, 1};
    wasi_nn_tensor_tensor_data_t data = {(uint8_t *)bytes, count};
    return wasi_nn_tensor_constructor_tensor(&dimensions, type, &data);
}

// The best of the scores; none is better than one that is no number.
static size_t best(const float *scores) {
    size_t best = 0;
    for (size_t at = 1; at < names_count; at++) {
        if (scores[at] > scores[best]) best = at;
    }
    return best;
}

bool exports_edgent_segment_layers_run(exports_edgent_segment_layers_list_named_tensor_t *inputs,
                                       exports_edgent_segment_layers_list_named_tensor_t *outputs,
                                       segment_string_t *error) {
    if (inputs->len != 1) return fail(error, "one tensor of scores at a time");
    wasi_nn_tensor_borrow_tensor_t given = wasi_nn_tensor_borrow_tensor(inputs->ptr[0].f1);
    wasi_nn_tensor_tensor_data_t bytes;
    wasi_nn_tensor_method_tensor_data(given, &bytes);
    bool fits = wasi_nn_tensor_method_tensor_ty(given) == WASI_NN_TENSOR_TENSOR_TYPE_FP32 &&
                bytes.len == names_count * sizeof(float);
    // Gives the tensor itself back, too.
    exports_edgent_segment_layers_list_named_tensor_free(inputs);
    if (!fits) return fail(error, "there must be one f32 for each name");

    const float *scores = (const float *)bytes.ptr;
    int64_t class = (int64_t)best(scores);
    float sum = 0;
    for (size_t at = 0; at < names_count; at++) sum += expf(scores[at] - scores[class]);
    float score = 1 / sum;
    segment_list_u8_free((segment_list_u8_t *)&bytes);

    wasi_nn_tensor_own_tensor_t made[] = {
        tensor(1, WASI_NN_TENSOR_TENSOR_TYPE_I64, &class, sizeof class),
        tensor(1, WASI_NN_TENSOR_TENSOR_TYPE_FP32, &score, sizeof score),
        tensor(LABEL_BYTES, WASI_NN_TENSOR_TENSOR_TYPE_U8, names[class], LABEL_BYTES),
    };
    const char *called[] = {"class", "score", "label"};
    outputs->len = sizeof made / sizeof *made;
    outputs->ptr = malloc(outputs->len * sizeof *outputs->ptr);
    for (size_t at = 0; at < outputs->len; at++) {
        segment_string_dup(&outputs->ptr[at].f0, called[at]);
        outputs->ptr[at].f1 = made[at];
    }
    return true;
}
