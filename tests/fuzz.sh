#!/bin/sh
# Fuzzes the readers of files with libFuzzer, ASan and UBSan.   usage: fuzz.sh [SECONDS (600) [1|2|3|4]]
# A crash stays in build/fuzz/ and belongs into a test; what is found on the way stays in build/fuzz/corpus*.
set -eu
cd "$(dirname "$0")/.."
command -v clang > /dev/null || { echo "SKIPPED: fuzzing needs clang with libFuzzer"; exit 0; }
mkdir -p build/fuzz
for kind in ${2:-1 2 3 4}; do
    mkdir -p build/fuzz/corpus$kind build/fuzz/seeds1 build/fuzz/seeds2 build/fuzz/seeds3 build/fuzz/seeds4
    case $kind in
    1) printf '{"a":[1,-2.5e3,true,null,"\\u00e9\\n"],"b":{}}' > build/fuzz/seeds1/a ;;
    2) cat > build/fuzz/seed.c << 'EOF'
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
int main(void)
{
    const tmoe_task task = { .name = "a", .category = "b", .instruction = "c d" };
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_config c = tmoe_config_default();
    c.width = c.vector_width = c.router_hidden = 4;
    c.encoder_heads = c.decoder_heads = 2;
    c.encoder_ffn = c.decoder_ffn = 4;
    c.encoder_layers = c.decoder_layers = 1;
    c.experts = 2;
    tmoe_tokenizer *bytes = tmoe_tokenizer_bytes(ctx);
    tmoe_model *model = tmoe_model_create(ctx, &c, bytes, &task, 1);
    const int bad = !model || tmoe_model_save(model, "build/fuzz/seeds2/a") != TMOE_OK;
    tmoe_model_destroy(model);
    tmoe_tokenizer_destroy(bytes);
    tmoe_ctx_destroy(ctx);
    return bad;
}
EOF
       ${CC:-cc} -std=gnu99 -I. build/fuzz/seed.c -o build/fuzz/seed -lm
       build/fuzz/seed
       printf '\071\000\000\000\000\000\000\000{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    \000\000\000\000' > build/fuzz/seeds2/b ;;
    3|4) vocabulary='{"<s>":0,"<pad>":1,"</s>":2,"<unk>":3,"<mask>":4,"a":5,"b":6,"ab":7,"\u0120":8,"\u0120a":9}'
       printf '{"added_tokens":[{"id":4,"content":"<mask>","lstrip":true}],"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":true},"model":{"type":"BPE","vocab":%s,"merges":["a b",["\\u0120","a"]]}}' "$vocabulary" > build/fuzz/seeds3/a 2> /dev/null || true
       { printf '%s\000' "$vocabulary"; printf '#version: 0.2\na b\n\304\240 a\n'; } > build/fuzz/seeds4/a ;;
    esac
    clang -std=gnu99 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -DFUZZ=$kind -I. tests/fuzz.c -o build/fuzz/fuzz$kind -lm
    echo "== reader $kind, ${1:-600} seconds"
    build/fuzz/fuzz$kind -max_total_time="${1:-600}" -max_len=65536 -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 -artifact_prefix=build/fuzz/ \
        build/fuzz/corpus$kind build/fuzz/seeds$kind 2> build/fuzz/log$kind || { tail -n 40 build/fuzz/log$kind; exit 1; }
    grep -E 'stat::number_of_executed_units|stat::new_units_added|cov:' build/fuzz/log$kind | tail -n 3
done
