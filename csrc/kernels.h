// The C interface of a kernel library; vllm_mxext/native/kernels/library.py declares the same for ctypes.
//
// All libraries export the same names and read the same layouts; they differ in the instructions they use. Tensors are
// raw pointers to row-major data with unit stride in the last dimension; `*_stride` counts elements between rows.
// `dtype` is one of MxDtype. No function fails or checks its arguments: that is the caller's duty. Zero rows are fine
// everywhere.
//
// Every operation takes one structure, because ctypes needs 0.1 us for each argument of a call and Python's struct
// module 0.015 us for each field. 64-bit fields come first, so that there is no padding between fields.
//
// Any change of a signature, struct or data layout must raise MX_ABI_VERSION, here and in library.py.
#pragma once

#include <stdint.h>

#define MX_ABI_VERSION 9
#define MX_API extern "C" __attribute__((visibility("default")))

enum MxDtype { MX_BF16 = 0, MX_FP16 = 1, MX_FP32 = 2 };

/// How the weights of a linear layer are kept.
enum MxFormat { MX_PLAIN = 0, MX_INT8 = 1, MX_INT4 = 2 };

/// A packed linear layer.
struct MxLinear {
    const void* weights;
    const float* bias;  // [out_features] or null
    const int32_t* input_order;  // int4: [in_features], which input a column's k-th weight multiplies; null: the k-th
    int64_t in_features;
    int64_t out_features;
    int32_t format;      // MxFormat: in the type of the model (panels.h) or quantised (int8.h, int4.h)
    int32_t group_size;  // int4: weights of a column that share a scale, 32, 64 or 128
};

/// How keys and values are kept.
enum MxKvFormat { MX_KV_PLAIN = 0, MX_KV_INT8 = 1 };

/// Constants of one attention layer and of its cache (layout: kv_layout.h).
struct MxGeometry {
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t block_size;
    int32_t sliding_window;  // 0 = none
    int32_t kv_format;       // MxKvFormat: in the type of the model (kv_plain.h) or quantised (kv_int8.h)
    float scale;
    float soft_cap;  // scores become soft_cap * tanh(score / soft_cap); 0 = they stay
};

/// Where the tokens of one step stand; mirrors AttentionMetadata of interface.py.
struct MxStep {
    const int32_t* positions;
    const int64_t* slot_mapping;
    const int32_t* block_tables;
    const int32_t* query_start_loc;
    const int32_t* seq_lens;
    int64_t block_table_stride;
    int32_t num_tokens;
    int32_t num_requests;
};

struct MxPackLinearCall {
    const void* weight;  // [out_features, in_features]
    int64_t weight_stride;
    int64_t out_features;
    int64_t in_features;
    void* packed;  // mx_packed_bytes() bytes
    int32_t dtype;
    int32_t format;  // MxFormat
};

/// Which weights share a 32-bit word of an int4 checkpoint.
enum MxInt4Words {
    MX_WORDS_OF_INPUTS = 0,   // eight neighbouring inputs of one column, lowest four bits first
    MX_WORDS_OF_COLUMNS = 1,  // eight neighbouring columns of one input, in the order 0 2 4 6 1 3 5 7
};

/// weight = (four bits - zero) * scale
struct MxPackInt4Call {
    const uint32_t* words;
    int64_t input_stride;    // from a word to that of the next inputs
    int64_t column_stride;   // ... of the next columns
    const uint16_t* scales;  // fp16 [ceil(in_features / scale_depth)][out_features]
    const uint8_t* zeros;    // the same shape, 0 to 15
    const int32_t* input_order;  // as in MxLinear; scales and zeros are in this order already
    int64_t scale_depth;         // inputs that share a scale, a multiple of group_size or at least in_features
    int64_t out_features;
    int64_t in_features;
    void* packed;  // mx_packed_int4_bytes() bytes
    int32_t word_order;  // MxInt4Words
    int32_t group_size;  // as in MxLinear
};

struct MxLinearCall {
    const MxLinear* layer;
    const void* x;
    int64_t x_stride;
    int64_t rows;
    void* out;
    int64_t out_stride;
    int32_t dtype;
    int32_t out_is_fp32;
};

/// A low-rank product that an adapter adds to some neighbouring outputs of a linear layer.
struct MxAdapterPart {
    const void* b;         // [outputs, ranks] as mx_pack_linear packs it; not read if there are no ranks
    int32_t first_output;
    int32_t outputs;
    int32_t first_rank;    // where its ranks begin among those of all parts, an even number
    int32_t ranks;         // 0: gain and bias only
    float scaling;         // factor on the product
    int32_t unused;
};

/// What an adapter does to one linear layer; outputs that are in no part stay as they are.
struct MxAdapter {
    const void* a;             // [ranks][a_stride], zeros past in_features
    const float* gain_change;  // [out_features] or null: outputs are multiplied by 1 + scale * gain_change
    const float* bias;         // [out_features] or null
    const MxAdapterPart* parts;
    int64_t in_features;
    int64_t a_stride;   // a multiple of 32
    int64_t ranks;      // of all parts, each padded to an even number
    int64_t num_parts;
};

/// Rows [start, end) whose requests use the adapter in a slot, with one scale.
struct MxAdapterRange {
    int32_t start;
    int32_t end;
    int32_t slot;
    float scale;
};

struct MxAdapterRanges {
    int64_t count;
    MxAdapterRange ranges[1];  // [count]
};

struct MxAdaptCall {
    const MxAdapter* const* slots;  // null: no adapter, or one that does nothing here
    const MxAdapterRanges* ranges;
    const void* x;
    int64_t x_stride;
    void* out;
    int64_t out_stride;
    int32_t dtype;
    int32_t out_is_fp32;
};

struct MxEmbeddingCall {
    const int32_t* token_ids;
    int64_t rows;
    const void* weight;
    int64_t weight_stride;
    int64_t hidden;
    void* out;
    int64_t out_stride;
    int32_t dtype;   // of the weight
    int32_t is_fp32; // of the output, which is like the weight otherwise
};

struct MxTiedEmbeddingCall {
    const MxLinear* head;  // of the same model: its weight [V, H] is the embedding
    const int32_t* token_ids;
    int64_t rows;
    float* out;
    int64_t out_stride;
    int32_t dtype;
};

struct MxRmsNormCall {
    const void* x;  // added to the residual stream first; or null
    int64_t x_stride;
    float* residual;  // what is normalised
    int64_t residual_stride;
    int64_t rows;
    int64_t hidden;
    const void* weight;
    void* out;
    int64_t out_stride;
    int32_t dtype;
    float eps;
};

struct MxSiluMulCall {
    const void* gate_up;
    int64_t gate_up_stride;
    int64_t rows;
    int64_t inner;
    void* out;
    int64_t out_stride;
    int32_t dtype;
};

struct MxRopeKvWriteCall {
    void* qkv;
    int64_t qkv_stride;
    const void* q_norm;  // or null
    const void* k_norm;  // or null
    const float* cos_sin;
    const MxGeometry* geometry;
    const MxStep* step;
    void* key_cache;
    void* value_cache;
    int32_t dtype;
    float eps;
};

struct MxPagedAttentionCall {
    const void* qkv;
    int64_t qkv_stride;
    const MxGeometry* geometry;
    const MxStep* step;
    const void* key_cache;
    const void* value_cache;
    void* out;
    int64_t out_stride;
    int32_t dtype;
};

/// Parameters of a row are found at its number; those of the others are not read.
struct MxSampleCall {
    const float* logits;
    int64_t stride;
    int64_t vocab_size;
    const int64_t* rows;  // [count] which rows to sample
    int64_t count;
    const float* temperature;  // 0 = the most likely token
    const int32_t* top_k;      // 0 = all
    const float* top_p;        // 1 = all
    const float* min_p;        // 0 = all
    const double* uniform;     // in [0, 1)
    int64_t* token_ids;        // -1 for a row with NaN or +inf, or with nothing but -inf
};

/// One of the operations below with its argument structure.
struct MxRecordedCall {
    void (*operation)(const void* call);
    const void* call;
};

MX_API int32_t mx_abi_version();

/// Whether this CPU runs the library named `isa` (`avx512_bf16`, `avx512`, `avx2`, `generic`).
MX_API int32_t mx_cpu_supports(const char* isa);

/// Threads that share the work of every later call, the calling thread included. Not during a call.
MX_API void mx_set_num_threads(int32_t num_threads);

/// Makes calls in order.
MX_API void mx_replay(const MxRecordedCall* calls, int64_t count);

/// Asks the system for large pages behind memory that has not been written yet.
MX_API void mx_advise_large_pages(void* start, int64_t bytes);

/// Bytes `mx_pack_linear` writes for a weight `[out_features, in_features]`.
MX_API int64_t mx_packed_bytes(int32_t dtype, int32_t format, int64_t out_features, int64_t in_features);

/// Bytes `mx_pack_int4` writes.
MX_API int64_t mx_packed_int4_bytes(int32_t group_size, int64_t out_features, int64_t in_features);

MX_API void mx_pack_linear(const MxPackLinearCall* call);
MX_API void mx_pack_int4(const MxPackInt4Call* call);
MX_API void mx_linear(const MxLinearCall* call);
MX_API void mx_adapt(const MxAdaptCall* call);
MX_API void mx_embedding(const MxEmbeddingCall* call);
MX_API void mx_tied_embedding(const MxTiedEmbeddingCall* call);
MX_API void mx_rms_norm(const MxRmsNormCall* call);
MX_API void mx_silu_mul(const MxSiluMulCall* call);
MX_API void mx_rope_kv_write(const MxRopeKvWriteCall* call);
MX_API void mx_paged_attention(const MxPagedAttentionCall* call);
MX_API void mx_sample(const MxSampleCall* call);
