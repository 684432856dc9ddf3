/* Files that somebody may have made to hurt us, for libFuzzer: sh tests/fuzz.sh [SECONDS]. -DFUZZ
 * chooses the reader: 1 JSON, 2 safetensors and a whole model file, 3 tokenizer.json, 4 vocab.json
 * with merges.txt. */
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"

#ifndef FUZZ
#define FUZZ 1
#endif

#if FUZZ >= 3
static void use_tokenizer(const tmoe_tokenizer *tokenizer)
{
    static const char text[] = "a<mask>b'll 12 \xc3\xa9\xff <s>";
    int ids[64];
    char back[4096];
    size_t count = 0, length;
    if (tmoe_tokenizer_encode(tokenizer, text, sizeof text - 1, 13, ids, 64, &count) == TMOE_OK
        && count <= 64)
        (void)tmoe_tokenizer_decode(tokenizer, ids, count, 18, back, sizeof back, &length);
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static tmoe_ctx *ctx;
    const size_t before = ctx ? tmoe_ctx_bytes(ctx, NULL) : 0;
    if (!ctx) {
        ctx = tmoe_ctx_create(NULL);
        return 0;
    }
    ctx->error = TMOE_OK;
#if FUZZ == 2
    static const char path[] = "/dev/shm/taskmoe_fuzz.safetensors";
    FILE *out = fopen(path, "wb");
    if (!out) abort();
    (void)fwrite(data, 1, size, out);
    (void)fclose(out);
    tmoe_model_destroy(tmoe_model_load(ctx, path));
#elif FUZZ == 4
    /* vocab.json, a zero, merges.txt */
    static const char folder[] = "/dev/shm/taskmoe_fuzz_bpe";
    const uint8_t *zero = size ? (const uint8_t *)memchr(data, 0, size) : NULL;
    const size_t split = zero ? (size_t)(zero - data) : size, second = zero ? split + 1 : size;
    (void)mkdir(folder, 0777);
    FILE *out = fopen("/dev/shm/taskmoe_fuzz_bpe/vocab.json", "wb");
    if (!out) return 0;
    (void)fwrite(data, 1, split, out);
    (void)fclose(out);
    out = fopen("/dev/shm/taskmoe_fuzz_bpe/merges.txt", "wb");
    if (!out) return 0;
    (void)fwrite(data + second, 1, size - second, out);
    (void)fclose(out);
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_load(ctx, folder);
    if (tokenizer) use_tokenizer(tokenizer);
    tmoe_tokenizer_destroy(tokenizer);
#else
    tmoei_json json;
    if (tmoei_json_parse(ctx, &json, (const char *)data, size, "fuzzed") == TMOE_OK) {
#if FUZZ == 3
        tmoe_tokenizer *tokenizer = tmoei_tokenizer_from_json(ctx, &json);
        if (tokenizer) use_tokenizer(tokenizer);
        tmoe_tokenizer_destroy(tokenizer);
#endif
        tmoei_json_free(ctx, &json);
    }
#endif
    if (tmoe_ctx_bytes(ctx, NULL) != before) __builtin_trap(); /* nothing may be left behind */
    return 0;
}
