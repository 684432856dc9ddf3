/* Text in, text out: JSON, safetensors, tokenizers, task folders, metrics, bad input, and the
 * promises of the embedded suite. */
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
#include "test.h"
#include <locale.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static tmoe_ctx *ctx;

/* A number of the JSON; fallback where the node is -1 or no number. */
static double json_number(const tmoei_json *json, int node, double fallback)
{
    const tmoei_json_node *n = tmoei_json_at(json, node);
    return n->kind == TMOEI_JSON_NUMBER ? n->number : fallback;
}

static const char *folder_new(void)
{
    static char path[64];
    (void)snprintf(path, sizeof path, "build/test_XXXXXX");
    CHECK(mkdtemp(path) != NULL);
    return path;
}

static void file_write(const char *folder, const char *name, const char *bytes, size_t n)
{
    char path[256];
    FILE *file;
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, n, file) == n);
    if (file) (void)fclose(file);
}

static void text_write(const char *folder, const char *name, const char *text)
{
    file_write(folder, name, text, strlen(text));
}

static void folder_make(const char *folder, const char *name)
{
    char path[256];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    (void)mkdir(path, 0777);
}

static void folder_remove(const char *folder)
{
    char command[128];
    (void)snprintf(command, sizeof command, "rm -rf '%s'", folder);
    CHECK(system(command) == 0);
}

/* ---- JSON ------------------------------------------------------------------------------------ */
static void test_json_reads_what_is_json(void)
{
    static const char text[] = " {\"a\": [1, -2.5e3, true, false, null], \"b\\u00e9\": "
                               "\"x\\n\\ud83d\\ude00\", \"c\": {}, \"d\": []} ";
    tmoei_json json;
    int a, node;
    CHECK(tmoei_json_parse(ctx, &json, text, sizeof text - 1, "text") == TMOE_OK);
    a = tmoei_json_get(&json, 0, "a");
    CHECK(a > 0 && json.nodes[a].count == 5);
    node = json.nodes[json.nodes[a].child].next;
    CHECK(json_number(&json, node, 0.0) == -2500.0);
    node = tmoei_json_get(&json, 0, "b\xc3\xa9");
    CHECK(tmoei_json_is_string(&json, node));
    CHECK_TEXT(json.nodes[node].text, "x\n\xf0\x9f\x98\x80");
    CHECK(tmoei_json_get(&json, 0, "z") == -1
        && json.nodes[tmoei_json_get(&json, 0, "c")].count == 0);
    tmoei_json_free(ctx, &json);
}

static void test_json_refuses_what_is_not(void)
{
    static const char *const bad[] = { "", " ", "{", "[1,]", "{\"a\":1,}", "{a:1}", "[1 2]", "01",
        "1.", ".5", "1e", "+1", "-", "tru", "nul", "\"abc", "\"\\x\"", "\"\\u12\"", "\"\\ud800\"",
        "\"\\ude00\"", "\"\x01\"", "\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "[1]x", "]",
        "{\"a\"}", "{\"a\":}", "NaN", "'a'" };
    char deep[200];
    size_t i;
    tmoei_json json;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        ctx->error = TMOE_OK;
        if (tmoei_json_parse(ctx, &json, bad[i], strlen(bad[i]), "text") == TMOE_OK) {
            printf("accepted: %s\n", bad[i]);
            test_failures++;
            tmoei_json_free(ctx, &json);
        }
        CHECK(ctx->error == TMOE_ERR_FORMAT);
        CHECK_HAS(tmoe_error_message(ctx), "text:1:");
    }
    memset(deep, '[', sizeof deep);
    ctx->error = TMOE_OK;
    CHECK(tmoei_json_parse(ctx, &json, deep, sizeof deep, "deep") == TMOE_ERR_FORMAT);
    CHECK_HAS(tmoe_error_message(ctx), "too deep");
    ctx->error = TMOE_OK;
}

static void settings_round_trip(tmoe_settings of)
{
    for (int i = 0; tmoe_setting_name(of, i); i++) {
        const char *name = tmoe_setting_name(of, i);
        tmoe_config c = tmoe_config_default(), c2 = c;
        tmoe_training t = tmoe_training_default(), t2 = t;
        const tmoei_field *f = tmoei_setting_find(of, name);
        char text[160], again[160];
        const double least = f ? f->least : 0.0, most = f ? f->most : 1.8e19;
        for (int k = 0; k < 12; k++) {
            const int real = f && f->kind == TMOEI_KIND_FLOAT;
            double x = k == 11 ? most : least + (real ? 0.0123 * k : 1.0 * k);
            char number[40];
            if (real) x = (double)(float)x;
            (void)snprintf(number, sizeof number, real ? "%.9g" : "%.0f", x);
            tmoe_result r = of == TMOE_SETTINGS_CONFIG ? tmoe_config_set(&c, name, number)
                                                       : tmoe_training_set(&t, name, number);
            CHECK(r == (x >= least && x <= most ? TMOE_OK : TMOE_ERR_CONFIG));
            r = of == TMOE_SETTINGS_CONFIG ? tmoe_config_get(&c, name, text, sizeof text)
                                           : tmoe_training_get(&t, name, text, sizeof text);
            CHECK(r == TMOE_OK);
            if (f && f->words) CHECK(!strpbrk(text, "0123456789")); /* each value has a word */
            r = of == TMOE_SETTINGS_CONFIG ? tmoe_config_set(&c2, name, text)
                                           : tmoe_training_set(&t2, name, text);
            CHECK(r == TMOE_OK);
            CHECK(memcmp(&c, &c2, sizeof c) == 0 && memcmp(&t, &t2, sizeof t) == 0);
        }
        CHECK(tmoe_setting_values(of, name, text, sizeof text) == TMOE_OK);
        CHECK(tmoe_setting_values(of, name, again, 4) == TMOE_ERR_ARGUMENT);
        CHECK(strlen(again) == 3 && strncmp(text, again, 3) == 0);
    }
}

static int no_progress(void *user, const tmoe_progress *progress)
{
    (void)user;
    return progress == NULL;
}

static void test_the_callback_is_set_and_nothing_else(void)
{
    tmoe_training t = tmoe_training_default(), other = t;
    int user;
    tmoe_training_set_progress(&t, no_progress, &user);
    CHECK(t.progress == no_progress && t.progress_user == &user);
    tmoe_training_set_progress(&t, NULL, NULL);
    CHECK(memcmp(&t, &other, sizeof t) == 0);
}

static void test_every_setting_is_set_and_read_by_its_name(void)
{
    char text[160];
    tmoe_config c = tmoe_config_default(), before;
    tmoe_training t = tmoe_training_default();
    settings_round_trip(TMOE_SETTINGS_CONFIG);
    settings_round_trip(TMOE_SETTINGS_TRAINING);
    CHECK(tmoe_setting_name(TMOE_SETTINGS_CONFIG, -1) == NULL);
    CHECK(tmoe_setting_name((tmoe_settings)2, 0) == NULL);

    CHECK(tmoe_config_set(&c, "experts", "8") == TMOE_OK && c.experts == 8);
    CHECK(tmoe_config_set(&c, "positions", "learned") == TMOE_OK);
    CHECK(c.positions == TMOE_POSITION_LEARNED);
    CHECK(tmoe_config_set(&c, "activation", "relu") == TMOE_OK && c.activation == TMOE_RELU);
    CHECK(tmoe_config_set(&c, "task_input", "vector|text") == TMOE_OK && c.task_input == 3);
    CHECK(tmoe_config_set(&c, "task_input", "none") == TMOE_OK && c.task_input == 0);
    CHECK(tmoe_config_set(&c, "seed", "18446744073709551615") == TMOE_OK && c.seed == UINT64_MAX);
    CHECK(tmoe_training_set(&t, "lr_model", "1e-3") == TMOE_OK && t.lr_model == 1e-3f);
    CHECK(tmoe_training_get(&t, "lr_model", text, sizeof text) == TMOE_OK);
    CHECK_TEXT(text, "0.001");
    CHECK(tmoe_training_set(&t, "train", "router|tasks") == TMOE_OK && t.train == 6);
    CHECK(tmoe_training_get(&t, "train", text, sizeof text) == TMOE_OK);
    CHECK_TEXT(text, "router|tasks");
    CHECK(tmoe_training_get(&t, "train", text, 12) == TMOE_ERR_ARGUMENT); /* no room for the 0 */
    CHECK_TEXT(text, "router|task");
    CHECK(tmoe_setting_values(TMOE_SETTINGS_CONFIG, "experts", text, sizeof text) == TMOE_OK);
    CHECK_TEXT(text, "a whole number, 1 to 64");
    CHECK(tmoe_setting_values(TMOE_SETTINGS_CONFIG, "positions", text, sizeof text) == TMOE_OK);
    CHECK_TEXT(text, "learned, rotary");

    static const char *const wrong[][2] = { { "experts", "0" }, { "experts", "65" },
        { "experts", "2.5" }, { "experts", "" }, { "experts", "4 " }, { "experts", "four" },
        { "experts", "0x8" }, { "experts", "nan" }, { "experts", "+" }, { "temperature", "inf" },
        { "temperature", "1e400" }, { "temperature", "1,5" }, { "positions", "rotar" },
        { "positions", "rotary " }, { "positions", "learned rotary" }, { "task_input", "" },
        { "task_input", "text|" }, { "task_input", "text|song" }, { "seed", "-1" },
        { "seed", "18446744073709551616" }, { "seed", "" } };
    before = c;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(tmoe_config_set(&c, wrong[i][0], wrong[i][1]) == TMOE_ERR_CONFIG);
    CHECK(tmoe_config_set(&c, "expert", "4") == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_config_set(&c, NULL, "4") == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_config_set(&c, "experts", NULL) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_config_get(&c, "expert", text, sizeof text) == TMOE_ERR_ARGUMENT);
    CHECK(memcmp(&before, &c, sizeof c) == 0);
}

/* A host that has called setlocale must not change files. */
static void test_json_numbers_have_a_point_in_every_locale(void)
{
    static const char text[] = "[1.5, -2.25e1, 3]";
    tmoe_training training = tmoe_training_default();
    char dropout[20];
    tmoei_buffer out = { NULL, 0, 0, 0 };
    tmoei_json json;
    (void)system("mkdir -p build/locale && "
                 "localedef -i de_DE -f UTF-8 build/locale/de_DE.UTF-8 2> build/locale/log");
    (void)setenv("LOCPATH", "build/locale", 0);
    if (!setlocale(LC_NUMERIC, "de_DE.UTF-8"))
        printf("SKIPPED: no locale with a decimal comma here\n");
    CHECK(tmoei_json_parse(ctx, &json, text, sizeof text - 1, "text") == TMOE_OK);
    CHECK(json_number(&json, 1, 0.0) == 1.5 && json_number(&json, 2, 0.0) == -22.5
        && json_number(&json, 3, 0.0) == 3.0);
    tmoei_buffer_json_number(ctx, &out, 0.5);
    tmoei_buffer_json_number(ctx, &out, -1.5e-20);
    tmoei_buffer_json_number(ctx, &out, 7.0);
    CHECK(tmoe_training_set(&training, "dropout", "0.25") == TMOE_OK);
    CHECK(tmoe_training_get(&training, "dropout", dropout, sizeof dropout) == TMOE_OK);
    (void)setlocale(LC_NUMERIC, "C");
    CHECK_TEXT(out.data, "0.5-1.5e-207");
    CHECK_TEXT(dropout, "0.25");
    tmoei_buffer_free(ctx, &out);
    tmoei_json_free(ctx, &json);
}

/* ---- safetensors ----------------------------------------------------------------------------- */
static tmoe_result header_open(const char *header, size_t data)
{
    static const char path[] = "build/test_header.safetensors";
    const char zeros[64] = { 0 };
    char length[8] = { 0 };
    tmoei_safetensors file;
    FILE *out = fopen(path, "wb");
    length[0] = (char)(strlen(header) & 255);
    length[1] = (char)(strlen(header) >> 8);
    CHECK(out && fwrite(length, 1, 8, out) == 8 && fputs(header, out) >= 0
        && fwrite(zeros, 1, data, out) == data && fclose(out) == 0);
    tmoei_begin(ctx);
    const tmoe_result result = tmoei_safetensors_open(ctx, &file, path);
    if (result == TMOE_OK) tmoei_safetensors_close(ctx, &file);
    (void)remove(path);
    return result;
}

static void test_safetensors_headers_are_taken_as_the_reference_takes_them(void)
{
    static const char *const good[] = {
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
        "{\"__metadata__\":null,\"a\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"BOOL\",\"shape\":[8],\"x\":1,\"data_offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"U16\",\"shape\":[1,1,1,1,1,1,1,1,4],\"data_offsets\":[0,8]}}",
        "{\"b\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[0,0]},"
        "\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}"
    };
    static const char *const bad[] = {
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8e0]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-0,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"shape\":[2],\"data_offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"F31\",\"shape\":[2],\"data_offsets\":[0,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[8,8]}}"
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CHECK(header_open(good[i], 8) == TMOE_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(header_open(bad[i], 8) == TMOE_ERR_FORMAT);
    tmoei_begin(ctx);
}

/* ---- numpy ----------------------------------------------------------------------------------- */
static tmoe_result npy_load(int version, const char *header, size_t data, float *x)
{
    static const char path[] = "build/test.npy";
    const float values[6] = { 1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f };
    const size_t n = strlen(header) + 1;
    char head[12] = "\x93NUMPY";
    FILE *out = fopen(path, "wb");
    head[6] = (char)version;
    head[8] = (char)(n & 255);
    head[9] = (char)(n >> 8);
    CHECK(out && fwrite(head, 1, version == 1 ? 10 : 12, out) == (version == 1 ? 10u : 12u)
        && fprintf(out, "%s\n", header) == (int)n && fwrite(values, 1, data, out) == data
        && fclose(out) == 0);
    const tmoe_result result = tmoe_npy_load(ctx, path, x, 2, 3);
    (void)remove(path);
    return result;
}

static void test_npy_headers_are_parsed(void)
{
    static const char sound[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }    ";
    static const char *const good[] = { sound,
        "{'descr':'<f4','fortran_order':False,'shape':(2,3)}",
        "{\"descr\": \"<f4\", \"fortran_order\": False, \"shape\": (2, 3)}",
        "{'shape': (2L, 3L), 'fortran_order': False, 'descr': '<f4', }" };
    static const char *const bad[][2] = {
        { "{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }", "is {descr:>f4," },
        { "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }", "is {descr:<i4," },
        { "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
            "is {descr:<f4,fortran_order:True" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }",
            "C order, shape:(2,3); is" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 1), }", "shape:(2,3,1)" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }", "shape:(6)" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (), }", "shape:()" },
        { "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }", "24 bytes of numbers" },
        { "{'descr': [('<f4', '<i4')], 'fortran_order': False, 'shape': (2, 3), }",
            "must be '<f4'" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': 1}", "must be '<f4'" },
        { "{'descr': '<f4', 'fortran_order': False}", "must be '<f4'" },
        { "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
            "must be" },
        { "['<f4', False, (2, 3)]", "must be '<f4'" },
        { "{'descr': '<f4', 'fortran_order': False, 'shape': (2 3), }", "shape:(23)" },
        { "{'descr': '<f4", "must be" }, { "", "must be" }
    };
    float x[6];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        for (int version = 1; version <= 3; version++) {
            memset(x, 0, sizeof x);
            CHECK(npy_load(version, good[i], 24, x) == TMOE_OK && x[0] == 1.0f && x[5] == 6.0f);
        }
    x[0] = 9.0f;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(npy_load(1, bad[i][0], 24, x) == TMOE_ERR_FORMAT && x[0] == 9.0f);
        CHECK_HAS(tmoe_error_message(ctx), bad[i][1]);
    }
    CHECK(npy_load(4, sound, 24, x) == TMOE_ERR_FORMAT);
    CHECK(npy_load(1, sound, 23, x) == TMOE_ERR_FORMAT);
    CHECK(tmoe_npy_load(ctx, "build/test.npy", x, 0, 3) == TMOE_ERR_ARGUMENT && x[0] == 9.0f);
    tmoei_begin(ctx);
}

/* ---- tokenizers ------------------------------------------------------------------------------ */
static void check_round_trip(const tmoe_tokenizer *tokenizer, const char *text, size_t n)
{
    int ids[512];
    char back[512];
    size_t count, length;
    CHECK(tmoe_tokenizer_encode(tokenizer, text, n, TMOE_TOKENIZER_SPECIALS, ids, 512, &count)
        == TMOE_OK);
    CHECK(count >= 2 && ids[0] == 0 && ids[count - 1] == 2);
    CHECK(tmoe_tokenizer_decode(tokenizer, ids, count, TMOE_TOKENIZER_SKIP_SPECIALS, back,
              sizeof back, &length)
        == TMOE_OK);
    CHECK(length == n && memcmp(back, text, n) == 0);
}

static void test_tokenizers_round_trip_any_bytes(void)
{
    static const char *const texts[] = { "the cat sat on the mat", "the cat, the hat, the bat",
        "a  b\tc\nd 12 345 caf\xc3\xa9 \xe4\xbd\xa0\xe5\xa5\xbd", "", " ", "the the the" };
    tmoe_tokenizer *bytes = tmoe_tokenizer_bytes(ctx),
                   *bpe = tmoe_tokenizer_train(ctx, texts, 6, 280),
                   *again = tmoe_tokenizer_train(ctx, texts, 6, 280);
    char random[300];
    int i, j;
    CHECK(tmoe_tokenizer_vocabulary(bytes) == 259 && tmoe_tokenizer_vocabulary(bpe) > 262);
    const tmoei_bpe *first = tmoei_bpe_of(bpe), *second = tmoei_bpe_of(again);
    CHECK(first->merge_count == second->merge_count
        && memcmp(first->merges, second->merges, sizeof *first->merges * (size_t)first->merge_count)
            == 0);
    for (i = 0; i < 6; i++) {
        check_round_trip(bytes, texts[i], strlen(texts[i]));
        check_round_trip(bpe, texts[i], strlen(texts[i]));
    }
    for (i = 0; i < 200; i++) {
        for (j = 0; j < 300; j++) random[j] = (char)tmoei_random(3, (uint64_t)i, (uint64_t)j);
        check_round_trip(bpe, random, (size_t)(i + 1));
    }
    tmoe_tokenizer_destroy(bytes);
    tmoe_tokenizer_destroy(bpe);
    tmoe_tokenizer_destroy(again);
}

/* Merging by hand: "aaab" with merges (a a) then (aa a) then (aaa b): leftmost first, earliest
 * merge first. */
static void test_bpe_merges_in_order(void)
{
    const int a = 3 + 'a', b = 3 + 'b';
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    tmoei_bpe *bpe = (tmoei_bpe *)tokenizer;
    int ids[16];
    size_t count;
    CHECK(tmoei_token_add(bpe, "aa", 2) && tmoei_token_add(bpe, "aaa", 3)
        && tmoei_token_add(bpe, "aaab", 4));
    const tmoei_merge_pair merges[3] = { { a, a, 259 }, { 259, a, 260 }, { 260, b, 261 } };
    for (int i = 0; i < 3; i++) CHECK(tmoei_merge_add(bpe, merges[i]));
    CHECK(tmoe_tokenizer_encode(tokenizer, "aaab", 4, 0, ids, 16, &count) == TMOE_OK && count == 1
        && ids[0] == 261);
    CHECK(tmoe_tokenizer_encode(tokenizer, "aaaab", 5, 0, ids, 16, &count) == TMOE_OK && count == 3
        && ids[0] == 259 && ids[1] == 259 && ids[2] == b);
    CHECK(tmoe_tokenizer_encode(tokenizer, "aaaa", 4, 0, NULL, 0, &count) == TMOE_OK && count == 2);
    tmoe_tokenizer_destroy(tokenizer);
    CHECK(tmoe_tokenizer_train(ctx, NULL, 0, 100) == NULL && ctx->error == TMOE_ERR_ARGUMENT);
    ctx->error = TMOE_OK;
}

/* GPT-2's pattern: where words end. */
static void test_words_are_cut_as_gpt2_cuts_them(void)
{
    static const char *const texts[] = { "it's we'll don't 'twas", "a  b   c ", "x\n\n y",
        "caf\xc3\xa9 \xe4\xbd\xa0\xe5\xa5\xbd, 12\xc2\xbd!", "...abc123 456" };
    static const char *const cut[] = { "it|'s| we|'ll| don|'t| '|twas|", "a| | b|  | c| |",
        "x|\n\n| y|", "caf\xc3\xa9| \xe4\xbd\xa0\xe5\xa5\xbd|,| 12\xc2\xbd|!|",
        "...|abc|123| 456|" };
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        char out[200] = "";
        const size_t n = strlen(texts[i]);
        for (size_t at = 0, end; at < n; at = end) {
            end = tmoei_word_end(tmoei_bpe_of(tokenizer), texts[i], n, at);
            strncat(out, texts[i] + at, end - at);
            strcat(out, "|");
        }
        CHECK_TEXT(out, cut[i]);
    }
    tmoe_tokenizer_destroy(tokenizer);
}

static void test_a_tokenizer_refuses_arguments_that_make_no_sense(void)
{
    tmoe_tokenizer *t = tmoe_tokenizer_bytes(ctx);
    const int bad[2] = { 3, 259 };
    char text[8] = "kept";
    size_t n = 7;
    int id = 7;
    CHECK(tmoe_tokenizer_encode(t, NULL, 1, 0, &id, 1, &n) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_tokenizer_encode(t, "a", 1, 0, NULL, 1, &n) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_tokenizer_encode(t, "a", 1, 0, &id, 1, NULL) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_tokenizer_encode(t, "a", 1, TMOE_TOKENIZER_SKIP_SPECIALS, &id, 1, &n)
        == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(ctx),
        "tokenizer_encode: a NULL that is read or written, or flags 2");
    CHECK(tmoe_tokenizer_decode(t, bad, 2, 0, text, sizeof text, &n) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(ctx), "id 259 at place 1");
    CHECK(tmoe_tokenizer_decode(t, bad, 1, TMOE_TOKENIZER_SPECIALS, text, sizeof text, &n)
        == TMOE_ERR_ARGUMENT);
    CHECK(n == 7 && id == 7 && strcmp(text, "kept") == 0); /* a failed call changes nothing */
    CHECK(tmoe_tokenizer_special(t, (tmoe_token)99) == -1);
    CHECK(tmoe_tokenizer_special(t, TMOE_TOKEN_UNKNOWN) == -1);
    CHECK(tmoe_tokenizer_encode(t, NULL, 0, 0, NULL, 0, &n) == TMOE_OK && n == 0);
    CHECK(tmoe_error(ctx) == TMOE_OK);
    tmoe_tokenizer_destroy(t);
}

#define SMALL_VOCABULARY \
    "{\"<s>\":0,\"<pad>\":1,\"</" \
    "s>\":2,\"<unk>\":3,\"a\":4,\"b\":5,\"\\u0120\":6,\"\\u0120\\u0120\":7}"

static tmoe_tokenizer *tokenizer_of(const char *text)
{
    tmoei_json json;
    tmoei_begin(ctx);
    CHECK(tmoei_json_parse(ctx, &json, text, strlen(text), "text") == TMOE_OK);
    tmoe_tokenizer *t = tmoei_tokenizer_from_json(ctx, &json);
    tmoei_json_free(ctx, &json);
    return t;
}

/* Two spaces are a token that merges make, and another one that somebody added: each has its id, in
 * a copy too, and after writing and reading. */
static void test_an_added_token_may_have_the_bytes_of_another(void)
{
    static const char text[] =
        "{\"added_tokens\":[{\"id\":8,\"content\":\"  \",\"special\":false},{\"id\":9,\"content\":"
        "\"a b\",\"special\":true}],\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":"
        "\"BPE\",\"vocab\":" SMALL_VOCABULARY ",\"merges\":[\"\\u0120 \\u0120\"]}}";
    const int find = TMOE_TOKENIZER_FIND_SPECIALS;
    tmoe_tokenizer *tokenizers[3] = { tokenizer_of(text), NULL, NULL };
    tmoei_buffer out = { NULL, 0, 0, 0 };
    CHECK(tokenizers[0] != NULL);
    if (!tokenizers[0]) return;
    tokenizers[1] = tokenizers[0]->copy(ctx, tokenizers[0]);
    tmoei_tokenizer_to_json(ctx, tokenizers[0], &out);
    CHECK_HAS(out.data, "\"  \":8,\"a b\":9}"); /* as they are, not in the byte alphabet */
    tokenizers[2] = tokenizer_of(out.data);
    tmoei_buffer_free(ctx, &out);
    for (int i = 0; i < 3; i++) {
        const tmoe_tokenizer *t = tokenizers[i];
        int ids[8];
        size_t n = 0;
        CHECK(t && tmoe_tokenizer_encode(t, "a  ", 3, 0, ids, 8, &n) == TMOE_OK && n == 2
            && ids[0] == 4 && ids[1] == 7);
        CHECK(t && tmoe_tokenizer_encode(t, "a  a b", 6, find, ids, 8, &n) == TMOE_OK && n == 3
            && ids[0] == 4 && ids[1] == 8 && ids[2] == 9);
        tmoe_tokenizer_destroy(tokenizers[i]);
    }
}

/* What would give other ids than Hugging Face's is not passed over. */
static void test_settings_of_a_tokenizer_that_change_ids_are_refused(void)
{
    static const char *const bad[][2] = { { "\"dropout\":0.1", "dropout" },
        { "\"end_of_word_suffix\":\"</w>\"", "end_of_word_suffix" },
        { "\"continuing_subword_prefix\":\"##\"", "continuing_subword_prefix" },
        { "\"ignore_merges\":true", "ignore_merges" }, { "\"fuse_unk\":true", "fuse_unk" },
        { "\"byte_fallback\":true", "byte_fallback" } };
    static const char *const good =
        "\"dropout\":null,\"end_of_word_suffix\":\"\",\"fuse_unk\":false";
    char text[600];
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
        const int last = i == sizeof bad / sizeof *bad;
        (void)snprintf(text, sizeof text,
            "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"use_regex\":true},\"model\":{\"type\":"
            "\"BPE\","
            "%s,\"vocab\":" SMALL_VOCABULARY ",\"merges\":[]}}",
            last ? good : bad[i][0]);
        tmoe_tokenizer *t = tokenizer_of(text);
        CHECK((t != NULL) == last);
        if (!last) CHECK_HAS(tmoe_error_message(ctx), bad[i][1]);
        tmoe_tokenizer_destroy(t);
    }
    CHECK(tokenizer_of(
              "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"use_regex\":false},\"model\":{\"type\""
              ":\"BPE\",\"vocab\":" SMALL_VOCABULARY ",\"merges\":[]}}")
        == NULL);
    CHECK_HAS(tmoe_error_message(ctx), "use_regex");
    tmoei_begin(ctx);
}

/* Letters of Unicode 17 (U+323B0) are none here and in Hugging Face's tokenizers, those of 16 are. */
static void test_letters_are_those_of_unicode_16(void)
{
    static const char new_letter[] = "a\xf0\xb2\x8e\xb0z",
                      old_letter[] = "a\xea\x9f\x9az"; /* A7DA */
    tmoe_tokenizer *t = tmoe_tokenizer_bytes(ctx);
    CHECK(tmoei_word_end(tmoei_bpe_of(t), new_letter, 6, 0) == 1);
    CHECK(tmoei_word_end(tmoei_bpe_of(t), old_letter, 5, 0) == 5);
    tmoe_tokenizer_destroy(t);
}

static void test_a_word_of_a_megabyte_is_encoded(void)
{
    static const char *const texts[] = {
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaaaaaaa aaaaaaaaaa abababababababab"
    };
    tmoe_tokenizer *bpe = tmoe_tokenizer_train(ctx, texts, 1, 270);
    const size_t n = (size_t)1 << 20;
    char *text = (char *)malloc(n);
    size_t count, i;
    for (i = 0; i < n; i++) text[i] = i % 7 == 3 ? 'b' : 'a';
    CHECK(tmoe_tokenizer_encode(bpe, text, n, 0, NULL, 0, &count) == TMOE_OK && count < n);
    free(text);
    tmoe_tokenizer_destroy(bpe);
}

/* ---- folders of tasks ------------------------------------------------------------------------ */
static void test_three_files_typed_in_an_editor_are_read(void)
{
    const char *folder = folder_new();
    tmoe_suite *suite;
    text_write(folder, "shout_it.tsv",
        "\xef\xbb\xbfhello\tHELLO\r\nworld\tWORLD\r\nsea\tSEA\r\nsun\tSUN\r\nsky\tSKY\r\n\r\n");
    text_write(folder, "last letter.tsv", "abc\tc\nxyz\tz\ndef\tf");
    text_write(folder, "capital.tsv", "France\tParis\tCity of Paris\r\nItaly\tRome\r\n\n\n");
    suite = tmoe_suite_load(ctx, folder, NULL);
    CHECK(suite != NULL);
    if (suite) {
        const int i = tmoe_suite_find(suite, "shout_it"), c = tmoe_suite_find(suite, "capital");
        CHECK(tmoe_suite_count(suite) == 3 && i >= 0 && c >= 0);
        CHECK_TEXT(tmoe_suite_task(suite, i)->instruction, "shout it");
        CHECK_TEXT(tmoe_suite_task(suite, i)->train[0].input, "hello");
        CHECK_TEXT(tmoe_suite_task(suite, i)->train[3].outputs[0], "SUN");
        CHECK(tmoe_suite_task(suite, i)->train_count == 4
            && tmoe_suite_task(suite, i)->test_count == 1);
        CHECK(tmoe_suite_task(suite, c)->train[0].output_count == 2
            && tmoe_suite_task(suite, c)->train_count == 1
            && tmoe_suite_task(suite, c)->test_count == 1);
        CHECK_TEXT(tmoe_suite_task(suite, c)->train[0].outputs[1], "City of Paris");
    }
    tmoe_suite_destroy(suite);
    folder_remove(folder);
}

static void test_tasks_table_and_split_are_read(void)
{
    const char *folder = folder_new();
    tmoe_suite *suite;
    folder_make(folder, "tasks");
    folder_make(folder, "splits");
    text_write(folder, "tasks/a.tsv", "1\tyes\n2\tno\n3\tyes\n4\tno\n5\tyes\n");
    text_write(folder, "tasks/b.tsv", "1\tx\n2\ty\n");
    text_write(folder, "tasks/c.tsv", "1\tx\n2\ty\n");
    text_write(folder, "tasks.tsv",
        "metric\tname\tinstruction\tcategory\tlabels\naccuracy\ta\tIs it "
        "odd?\tlogic\tyes|no\nexact_match\tb\tName it.\tnames\t\n");
    text_write(folder, "splits/half.json", "{\"train\": [\"a\"], \"test\": [\"b\"]}");
    suite = tmoe_suite_load(ctx, folder, "half");
    CHECK(suite && tmoe_suite_count(suite) == 2);
    if (suite) {
        CHECK_TEXT(tmoe_suite_task(suite, 0)->instruction, "Is it odd?");
        CHECK_TEXT(tmoe_suite_task(suite, 0)->category, "logic");
        CHECK(tmoe_suite_task(suite, 0)->metric == TMOE_METRIC_ACCURACY
            && tmoe_suite_task(suite, 0)->label_count == 2
            && tmoe_suite_task(suite, 0)->part == TMOE_PART_TRAIN);
        CHECK_TEXT(tmoe_suite_task(suite, 0)->labels[1], "no");
        CHECK(tmoe_suite_task(suite, 1)->part == TMOE_PART_TEST);
    }
    tmoe_suite_destroy(suite);
    folder_remove(folder);
}

static void test_crossfit_and_json_lines_are_read(void)
{
    const char *folder = folder_new();
    tmoe_suite *suite;
    folder_make(folder, "glue-x");
    text_write(folder, "glue-x/glue-x_16_100_train.tsv", "a\tb\tc\nd\te\n");
    text_write(folder, "glue-x/glue-x_16_100_dev.tsv", "f\tg\n");
    text_write(folder, "glue-x/glue-x_16_100_test.tsv", "h\ti\n");
    text_write(folder, "glue-x/glue-x_16_13_train.tsv", "q\tr\n");
    text_write(folder, "more.jsonl",
        "{\"task\": \"t\", \"instruction\": \"Do it.\", \"input\": \"1\", \"output\": \"one\"}\n"
        "{\"task\": \"u\", \"input\": \"1\", \"output\": [\"uno\", \"un\"]}\n{\"task\": \"t\", "
        "\"input\": \"2\", \"output\": \"two\"}\n");
    text_write(folder, "tasks.tsv",
        "name\tmetric\tinstruction\nglue-x\taccuracy\t\nt\trouge_l\tDo that.\nno such "
        "task\trouge_l\tNo.\n");
    suite = tmoe_suite_load(ctx, folder, NULL);
    CHECK(suite && tmoe_suite_count(suite) == 3);
    if (!suite)
        printf("%s\n", tmoe_error_message(ctx));
    else {
        const tmoe_task *x = tmoe_suite_task(suite, tmoe_suite_find(suite, "glue-x")),
                        *t = tmoe_suite_task(suite, tmoe_suite_find(suite, "t"));
        CHECK(x->train_count == 3 && x->test_count == 1
            && x->train[1].output_count + x->train[0].output_count + x->train[2].output_count == 4);
        CHECK_TEXT(x->test[0].outputs[0], "i");
        CHECK(x->metric == TMOE_METRIC_ACCURACY
            && t->metric == TMOE_METRIC_ROUGE_L); /* tasks.tsv describes every layout */
        CHECK_TEXT(x->instruction, "glue-x");
        CHECK_TEXT(t->instruction, "Do that.");
        CHECK(t->train_count == 1 && t->test_count == 1);
        CHECK(tmoe_suite_task(suite, tmoe_suite_find(suite, "u"))->train[0].output_count == 2);
    }
    tmoe_suite_destroy(suite);
    folder_remove(folder);
}

static void test_bad_task_data_is_named_with_file_and_line(void)
{
    static const struct {
        const char *name, *text, *message;
        tmoe_result result;
    } bad[] = { { "x.tsv", "a\tb\nno tab here\n", "x.tsv:2: no TAB", TMOE_ERR_DATA },
        { "x.tsv", "a\tb\n\nc\td\n", "x.tsv:2: no TAB", TMOE_ERR_DATA },
        { "x.tsv", "a\t\n", "x.tsv:1: the output is empty", TMOE_ERR_DATA },
        { "x.tsv", "\tb\n", "x.tsv:1: the input is empty", TMOE_ERR_DATA },
        { "x.tsv", "a\tb\nc\td\xff\n", "x.tsv:2: the output is not valid UTF-8 at its byte 2",
            TMOE_ERR_DATA },
        { "x.tsv", "", "task x has 0 lines", TMOE_ERR_DATA },
        { "x.jsonl", "{\"task\": \"t\", \"input\": \"1\"}\n", "x.jsonl:1: needs strings",
            TMOE_ERR_DATA },
        { "x.jsonl", "{\"task\": \"t\"\n", "x.jsonl:1:1:", TMOE_ERR_FORMAT },
        { "x.jsonl", "{\"task\": \"t\", \"input\": \"1\", \"output\": []}\n",
            "list of outputs is empty", TMOE_ERR_DATA },
        { "notes.txt", "hello", "no tasks", TMOE_ERR_DATA } };

    size_t i;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *folder = folder_new();
        text_write(folder, bad[i].name, bad[i].text);
        CHECK(tmoe_suite_load(ctx, folder, NULL) == NULL && tmoe_error(ctx) == bad[i].result);
        CHECK_HAS(tmoe_error_message(ctx), bad[i].message);
        folder_remove(folder);
    }
    {
        const char *folder = folder_new();
        text_write(folder, "a.tsv", "1\t2\n3\t4\n");
        text_write(folder, "tasks.tsv", "name\tmetric\na\tluck\n");
        CHECK(tmoe_suite_load(ctx, folder, NULL) == NULL && tmoe_error(ctx) == TMOE_ERR_DATA);
        CHECK_HAS(tmoe_error_message(ctx), "tasks.tsv:2: unknown metric 'luck'");
        text_write(folder, "tasks.tsv", "name\tlabels\na\tx|y|x\n");
        CHECK(tmoe_suite_load(ctx, folder, NULL) == NULL && tmoe_error(ctx) == TMOE_ERR_DATA);
        CHECK_HAS(tmoe_error_message(ctx), "tasks.tsv:2: label 'x' is there twice");
        text_write(folder, "tasks.tsv", "name\tlabels\na\t2|five\n");
        CHECK(tmoe_suite_load(ctx, folder, NULL) == NULL && tmoe_error(ctx) == TMOE_ERR_DATA);
        CHECK_HAS(tmoe_error_message(ctx), "tasks.tsv:2: '4' is no label");
        text_write(folder, "tasks.tsv", "name\tlabels\na\t4|2\n");
        CHECK(tmoe_suite_load(ctx, folder, "half") == NULL && tmoe_error(ctx) == TMOE_ERR_FILE);
        CHECK_HAS(tmoe_error_message(ctx), "splits/half.json");
        folder_remove(folder);
    }
    CHECK(tmoe_suite_load(ctx, "build/there is no such folder", NULL) == NULL
        && tmoe_error(ctx) == TMOE_ERR_FILE);
    CHECK_HAS(tmoe_error_message(ctx), "there is no such folder");
}

static void test_a_bad_split_is_refused(void)
{
    static const struct {
        const char *text, *message;
    } bad[] = { { "{\"train\": [\"a\", \"b\", \"c\"]}", "no task called: b; c" },
        { "{\"train\": [\"a\", \"a\"]}", "named twice" },
        { "{\"train\": \"a\"}", "lists of task names" }, { "[1]", "a split is" },
        { "{\"train\": [\"a\"]", "JSON" }, { "{\"test\": [7]}", "(not a string)" } };

    size_t i;
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *folder = folder_new();
        char path[128];
        text_write(folder, "a.tsv", "1\t2\n3\t4\n");
        text_write(folder, "split.json", bad[i].text);
        (void)snprintf(path, sizeof path, "%s/split.json", folder);
        CHECK(tmoe_suite_load(ctx, folder, path) == NULL);
        CHECK_HAS(tmoe_error_message(ctx), bad[i].message);
        CHECK(tmoe_suite_load(ctx, folder, "no such split") == NULL
            && tmoe_error(ctx) == TMOE_ERR_FILE);
        folder_remove(folder);
    }
}

/* By the rules of CrossFit's loader: white space around a line does not count, lines without an
 * answer are left out. */
static void test_crossfit_lines_are_stripped(void)
{
    static const char *const answers[6] = { "a", "b", "c", "d", "e", "f" };
    const char *folder = folder_new();
    folder_make(folder, "tk");
    text_write(folder, "tk/tk_16_13_train.tsv",
        "1\ta \n\n2\tb\xc2\xa0\n3\tc\t\n  4\td\nnone\n5\t\te\r\r\n6\t \n");
    text_write(folder, "tk/tk_16_13_test.tsv", "7\tf\n");
    tmoe_suite *suite = tmoe_suite_load(ctx, folder, NULL);
    CHECK(suite && tmoe_suite_task(suite, 0)->train_count == 5);
    for (int i = 0; suite && i < 6; i++) {
        const tmoe_example *example = &tmoe_suite_task(suite, 0)->train[i];
        CHECK(example->output_count == 1 && example->input[0] == "123457"[i]);
        CHECK_TEXT(example->outputs[0], answers[i]);
    }
    tmoe_suite_destroy(suite);
    folder_remove(folder);
}

static void test_a_split_may_begin_with_a_byte_order_mark(void)
{
    const char *folder = folder_new();
    folder_make(folder, "splits");
    text_write(folder, "a.tsv", "1\t2\n3\t4\n");
    text_write(folder, "b.tsv", "1\t2\n3\t4\n");
    text_write(folder, "splits/v1.0.json", "\xef\xbb\xbf{\"train\": [\"b\"]}");
    tmoe_suite *suite = tmoe_suite_load(ctx, folder, "v1.0");
    CHECK(suite && tmoe_suite_count(suite) == 1);
    tmoe_suite_destroy(suite);
    folder_remove(folder);
}

/* A name, instruction, category or label that a saved model could not hold is refused at once. */
static void test_what_describes_a_task_must_be_utf8(void)
{
    static const char *const bad[][2] = {
        { "name\tinstruction\na\tSag \xe4h\n", "tasks.tsv:2: the instruction is not valid UTF-8" },
        { "name\tcategory\na\t\xe4\n", "tasks.tsv:2: the category is not valid UTF-8" },
        { "name\tlabels\na\t2|\xe4|4\n", "tasks.tsv:2: the labels is not valid UTF-8" },
        { "name\tlabels\na\t2||4\n", "tasks.tsv:2: the label is empty" },
        { "name\tlabels\na\t2|4|\n", "tasks.tsv:2: the label is empty" },
    };

    const char *folder = folder_new();
    text_write(folder, "a.tsv", "1\t2\n3\t4\n");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        text_write(folder, "tasks.tsv", bad[i][0]);
        CHECK(tmoe_suite_load(ctx, folder, NULL) == NULL && tmoe_error(ctx) == TMOE_ERR_DATA);
        CHECK_HAS(tmoe_error_message(ctx), bad[i][1]);
    }
    text_write(folder, "tasks.tsv", "name\tcategory\nother\t\xe4\n"); /* of no task here */
    text_write(folder, "\xe4.tsv", "1\t2\n3\t4\n");
    CHECK(tmoe_suite_load(ctx, folder, NULL) == NULL && tmoe_error(ctx) == TMOE_ERR_DATA);
    CHECK_HAS(tmoe_error_message(ctx), "the name is not valid UTF-8");
    folder_remove(folder);
}

static void test_a_task_that_is_added_must_be_sound(void)
{
    static const char *const texts[3] = { "1", "2", "3" }, *const holes[3] = { "1", NULL, "3" };
    tmoe_suite *suite = tmoe_suite_create(ctx);
    tmoe_task_lines sound, lines;
    memset(&sound, 0, sizeof sound);
    sound.name = "a";
    sound.instruction = "Do it.";
    sound.inputs = sound.outputs = texts;
    sound.count = 3;
    sound.test_count = 1;
    for (int i = 0; i < 12; i++) {
        lines = sound;
        if (i == 0) lines.name = NULL;
        if (i == 1) lines.instruction = "";
        if (i == 2) lines.inputs = NULL;
        if (i == 3) lines.outputs = holes;
        if (i == 4) lines.count = 0;
        if (i == 5) lines.test_count = 3;
        if (i == 6) lines.test_count = -1;
        if (i == 7) lines.metric = TMOE_METRICS;
        if (i == 8) lines.part = (tmoe_part)3;
        if (i == 9) lines.name = "\xe4";
        if (i == 10) lines.instruction = "\xe4";
        if (i == 11) lines.category = "\xe4";
        CHECK(
            tmoe_suite_add(suite, &lines) == (i < 9 && i != 3 ? TMOE_ERR_ARGUMENT : TMOE_ERR_DATA));
        CHECK_HAS(tmoe_error_message(ctx), "suite_add: ");
        CHECK(tmoe_suite_count(suite) == 0);
    }
    CHECK(tmoe_suite_add(suite, &sound) == TMOE_OK && tmoe_suite_count(suite) == 1);
    CHECK_TEXT(tmoe_suite_task(suite, 0)->category, "none");
    CHECK(tmoe_suite_add(suite, &sound) == TMOE_ERR_DATA && tmoe_suite_count(suite) == 1);
    CHECK_HAS(tmoe_error_message(ctx), "two tasks called a");
    tmoe_suite_destroy(suite);
}

/* ---- model files ----------------------------------------------------------------------------- */
static tmoe_model *tiny_model(void)
{
    tmoe_config c = tmoe_config_default();
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    tmoe_model *model;
    tmoe_task task;
    memset(&task, 0, sizeof task);
    task.name = "t";
    task.category = "c";
    task.instruction = "Do \"it\".\n";
    c.width = 4;
    c.encoder_heads = c.decoder_heads = 2;
    c.encoder_ffn = c.decoder_ffn = 4;
    c.encoder_layers = c.decoder_layers = 1;
    c.experts = 2;
    c.vector_width = 4;
    c.router_hidden = 4;
    c.source_tokens = c.target_tokens = 8;
    model = tmoe_model_create(ctx, &c, tokenizer, &task, 1);
    tmoe_tokenizer_destroy(tokenizer);
    return model;
}

static char *file_read(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    char *bytes;
    (void)fseek(file, 0, SEEK_END);
    *n = (size_t)ftell(file);
    rewind(file);
    bytes = (char *)malloc(*n);
    CHECK(fread(bytes, 1, *n, file) == *n);
    (void)fclose(file);
    return bytes;
}

static void test_truncated_and_edited_model_files_are_refused_or_sound(void)
{
    const char *folder = folder_new();
    char path[128], broken[128];
    tmoe_model *model = tiny_model(), *loaded;
    static const char *const metadata[] = { "{\"__metadata__\":{\"a\":\"b\"}}",
        "{\"__metadata__\":{\"a\":1}}", "{\"__metadata__\":[\"a\"]}",
        "{\"__metadata__\":{},\"__metadata__\":{}}" };
    size_t n, i, before, header;
    char *bytes;
    (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
    (void)snprintf(broken, sizeof broken, "%s/broken.safetensors", folder);
    CHECK(tmoe_model_save(model, path) == TMOE_OK);
    bytes = file_read(path, &n);
    header = 8 + (size_t)(unsigned char)bytes[0] + 256 * (size_t)(unsigned char)bytes[1];
    CHECK(header % 64 == 0 && header < n);
    before = tmoe_ctx_bytes(ctx, NULL);
    for (i = 0; i < n; i += i < header + 64 ? 7 : 997) { /* cut off */
        file_write(folder, "broken.safetensors", bytes, i);
        CHECK(tmoe_model_load(ctx, broken) == NULL && tmoe_error(ctx) == TMOE_ERR_FORMAT);
    }
    for (i = 0; i < header;
         i++) { /* one bit of the header flipped: an error, or a file that is as sound */
        bytes[i] = (char)(bytes[i] ^ (1 << i % 7));
        file_write(folder, "broken.safetensors", bytes, n);
        loaded = tmoe_model_load(ctx, broken);
        CHECK(loaded || tmoe_error(ctx) != TMOE_OK);
        tmoe_model_destroy(loaded);
        bytes[i] = (char)(bytes[i] ^ (1 << i % 7));
    }
    for (i = 0; i < sizeof metadata / sizeof *metadata; i++) {
        tmoei_safetensors file;
        char small[256];
        n = strlen(metadata[i]);
        memset(small, 0, 8);
        small[0] = (char)n;
        memcpy(small + 8, metadata[i], n + 1);
        file_write(folder, "broken.safetensors", small, 8 + n);
        CHECK(tmoei_safetensors_open(ctx, &file, broken) == (i ? TMOE_ERR_FORMAT : TMOE_OK));
        if (i)
            CHECK_HAS(tmoe_error_message(ctx), "__metadata__: must be one object of strings");
        else
            tmoei_safetensors_close(ctx, &file);
        ctx->error = TMOE_OK;
    }
    CHECK(tmoe_ctx_bytes(ctx, NULL) == before);
    free(bytes);
    CHECK(
        tmoe_model_load(ctx, "build/none.safetensors") == NULL && tmoe_error(ctx) == TMOE_ERR_FILE);
    CHECK(tmoe_model_save(model, "build/no such folder/m.safetensors") == TMOE_ERR_FILE);
    tmoe_model_destroy(model);
    folder_remove(folder);
}

/* A device or folder in the file's place is refused, and a file or link of the user's that has the
 * temporary file's name stays as it was. */
static void test_saving_replaces_files_only(void)
{
    const char *folder = folder_new();
    char path[128], other[128], temporary[128];
    tmoe_model *model = tiny_model();
    size_t n;
    (void)snprintf(path, sizeof path, "%s/m.st", folder);
    (void)snprintf(other, sizeof other, "%s/precious", folder);
    (void)snprintf(temporary, sizeof temporary, "%s/m.st.tmp", folder);
    text_write(folder, "precious", "mine");
    CHECK(symlink("precious", temporary) == 0);
    CHECK(tmoe_model_save(model, path) == TMOE_OK);
    char *bytes = file_read(other, &n);
    CHECK(n == 4 && memcmp(bytes, "mine", 4) == 0);
    free(bytes);
    struct stat about;
    CHECK(lstat(temporary, &about) == 0 && S_ISLNK(about.st_mode));
    CHECK(lstat(path, &about) == 0 && S_ISREG(about.st_mode));
    folder_make(folder, "taken");
    (void)snprintf(path, sizeof path, "%s/taken", folder);
    CHECK(tmoe_model_save(model, path) == TMOE_ERR_FILE);
    (void)snprintf(path, sizeof path, "%s/pipe", folder);
    CHECK(mkfifo(path, 0600) == 0 && tmoe_model_save(model, path) == TMOE_ERR_FILE);
    CHECK_HAS(tmoe_error_message(ctx), "is not a file that could be replaced");
    CHECK(lstat(path, &about) == 0 && S_ISFIFO(about.st_mode));
    tmoe_model_destroy(model);
    folder_remove(folder);
}

static void test_a_failed_save_leaves_the_old_file(void)
{
    const char *folder = folder_new();
    char path[128], temporary[140];
    tmoe_model *model = tiny_model(), *loaded;
    const struct rlimit full = { 1000, RLIM_INFINITY };
    struct rlimit before;
    (void)snprintf(path, sizeof path, "%s/model.safetensors", folder);
    (void)snprintf(temporary, sizeof temporary, "%s.tmp", path);
    CHECK(tmoe_model_save(model, path) == TMOE_OK);
    (void)signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(setrlimit(RLIMIT_FSIZE, &full) == 0); /* as if the disk were full */
    CHECK(tmoe_model_save(model, path) == TMOE_ERR_FILE);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(!file_exists(temporary));
    loaded = tmoe_model_load(ctx, path);
    CHECK(loaded != NULL);
    tmoe_model_destroy(loaded);
    tmoe_model_destroy(model);
    folder_remove(folder);
}

/* ---- metrics --------------------------------------------------------------------------------- */
static double score(tmoe_metric metric, const char *prediction, const char *answer)
{
    tmoe_example example;
    double result = -9.0;
    example.input = "";
    example.outputs = &answer;
    example.output_count = 1;
    CHECK(tmoe_score(ctx, metric, &prediction, &example, 1, &result) == TMOE_OK);
    return result;
}

static void test_metrics_by_hand(void)
{
    CHECK(score(TMOE_METRIC_EXACT_MATCH, "The  Cat!", "cat") == 1.0
        && score(TMOE_METRIC_EXACT_MATCH, "cats", "cat") == 0.0);
    CHECK(score(TMOE_METRIC_ACCURACY, "YES", "yes") == 1.0
        && score(TMOE_METRIC_ACCURACY, "yes!", "yes") == 0.0);
    CHECK_NEAR(score(TMOE_METRIC_TOKEN_F1, "red apple", "the red big apple tree"), 2.0 * 2 / 6,
        1e-12);
    CHECK_NEAR(score(TMOE_METRIC_ROUGE_L, "a b c d", "a x c d"), 0.75, 1e-7);
}

static const char *oracles(void)
{
    const char *given = getenv("TMOE_ORACLES");
    return given ? given : "../shared/oracles";
}

static void test_metrics_against_the_reference(void)
{
    static const char *const names[TMOE_METRICS] = { "EM", "ACC", "Classification-F1", "QA-F1",
        "Rouge-L", "Matthew-Correlation", "Pearson-Correlation" };
    char path[512];
    size_t length;
    char *text;
    tmoei_json json;
    int node, cases = 0;
    (void)snprintf(path, sizeof path, "%s/metrics/expected.json", oracles());
    if (!file_exists(path)) {
        printf("SKIPPED test_metrics_against_the_reference: %s is not there\n", path);
        return;
    }
    text = tmoei_read_file(ctx, path, (size_t)1 << 28, &length);
    for (char *at = text; at && (at = strstr(at, "\"score\": NaN")) != NULL;)
        memcpy(at, "\"score\":null", 12); /* Python's NaN is no JSON */
    CHECK(text && tmoei_json_parse(ctx, &json, text, length, path) == TMOE_OK);
    if (ctx->error != TMOE_OK) {
        printf("%s\n", tmoe_error_message(ctx));
        tmoei_free(ctx, text);
        return;
    }
    for (node = json.nodes[0].child; node >= 0; node = json.nodes[node].next, cases++) {
        const int predictions = tmoei_json_get(&json, node, "predictions"),
                  answers = tmoei_json_get(&json, node, "answers"),
                  n = json.nodes[predictions].count;
        const double expected =
            json_number(&json, tmoei_json_get(&json, node, "score"), (double)NAN);
        const char **given = (const char **)malloc(sizeof *given * (size_t)(n + 1)),
                   **accepted = (const char **)malloc(sizeof *accepted * (size_t)(json.count + 1));
        tmoe_example *examples = (tmoe_example *)malloc(sizeof *examples * (size_t)(n + 1));
        int i = 0, used = 0, metric, p, a, o;
        double result = -9.0;
        if (!given || !accepted || !examples) exit(3);
        for (metric = 0; metric < TMOE_METRICS
             && strcmp(names[metric], json.nodes[tmoei_json_get(&json, node, "metric")].text);
             metric++) {}
        CHECK(metric < TMOE_METRICS && n == json.nodes[answers].count);
        for (p = json.nodes[predictions].child, a = json.nodes[answers].child; p >= 0;
             p = json.nodes[p].next, a = json.nodes[a].next, i++) {
            given[i] = json.nodes[p].text;
            examples[i].outputs = accepted + used;
            examples[i].output_count = json.nodes[a].count;
            for (o = json.nodes[a].child; o >= 0; o = json.nodes[o].next)
                accepted[used++] = json.nodes[o].text;
        }
        CHECK(tmoe_score(ctx, (tmoe_metric)metric, given, examples, n, &result) == TMOE_OK);
        if (!(fabs(result - expected) <= 1e-9) && !(expected != expected && result != result)) {
            printf("%s case %d: %.12g, expected %.12g\n", names[metric], cases, result, expected);
            test_failures++;
        }
        free(given);
        free(accepted);
        free(examples);
    }
    CHECK(cases > 100);
    tmoei_json_free(ctx, &json);
    tmoei_free(ctx, text);
}

/* ---- the embedded suite's promises ----------------------------------------------------------- */
static int compare_texts(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void test_suite_test_items_never_occur_in_training(void)
{
    tmoe_suite *suite = tmoe_suite_load(ctx, "examples/suite", "zero_shot");
    const char **inputs;
    int t, i, j, n = 0, lists = 0, seen = 0, unseen = 0;
    CHECK(suite != NULL);
    if (!suite) {
        printf("%s\n", tmoe_error_message(ctx));
        return;
    }
    inputs = (const char **)malloc(sizeof *inputs * 100000);
    for (t = 0; t < tmoe_suite_count(suite); t++) {
        const tmoe_task *task = tmoe_suite_task(suite, t);
        seen += task->part == TMOE_PART_TRAIN;
        unseen += task->part == TMOE_PART_TEST;
        CHECK(task->train_count + task->test_count >= 28
            && task->test_count == (task->train_count + task->test_count) / 5);
        for (i = 0; i < task->test_count;
             i++) /* no test line's input is in its own task's training lines */
            for (j = 0; j < task->train_count; j++)
                CHECK(strcmp(task->test[i].input, task->train[j].input) != 0);
        if (task->part == TMOE_PART_TRAIN)
            for (i = 0; i < task->train_count; i++) inputs[n++] = task->train[i].input;
    }
    qsort(inputs, (size_t)n, sizeof *inputs, compare_texts);
    for (t = 0; t < tmoe_suite_count(suite);
         t++) /* no list or sentence of any test line is in any task's training lines */
        for (i = 0; i < tmoe_suite_task(suite, t)->test_count; i++) {
            const char *input = tmoe_suite_task(suite, t)->test[i].input;
            if (!strchr(input, ',') && !strchr(input, '.') && !strchr(input, '!')) continue;
            if (strspn(input, "0123456789, ") == strlen(input))
                continue; /* pairs of numbers: unique within their task */
            lists++;
            CHECK(bsearch(&input, inputs, (size_t)n, sizeof *inputs, compare_texts) == NULL);
        }
    CHECK(seen >= 120 && unseen >= 28 && lists > 5000);
    free(inputs);
    tmoe_suite_destroy(suite);
}

/* Gains against a direct computation; the interval holds the mean and shrinks where all tasks gain
 * alike. */
static void test_comparing_two_models_over_tasks(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    const double base[6] = { 0.5, 0.25, 0.0, 0.4, (double)NAN, 0.2 },
                 scores[6] = { 0.6, 0.25, 0.3, 0.2, 0.9, 0.3 };
    tmoe_comparison c;
    CHECK(tmoe_compare(ctx, base, scores, 6, 1, &c) == TMOE_OK);
    CHECK_NEAR(c.relative_gain[0], (0.2 + 0.0 - 0.5 + 0.5) / 4, 1e-12);
    CHECK_NEAR(c.difference[0], (0.1 + 0.0 + 0.3 - 0.2 + 0.1) / 5, 1e-12);
    CHECK(c.wins == 3 && c.ties == 1 && c.losses == 1 && c.zero_base == 1 && c.undefined == 1);
    { /* a share of a base below 0 would have the wrong sign: such tasks count as those of base 0 */
        const double below[3] = { -0.5, -0.2, 0.5 }, better[3] = { 0.5, 0.1, 0.6 };
        tmoe_comparison d;
        CHECK(tmoe_compare(ctx, below, better, 3, 1, &d) == TMOE_OK);
        CHECK_NEAR(d.relative_gain[0], 0.2, 1e-12);
        CHECK_NEAR(d.difference[0], (1.0 + 0.3 + 0.1) / 3, 1e-12);
        CHECK(d.zero_base == 2 && d.wins == 3);
    }
    CHECK(c.relative_gain[1] < c.relative_gain[0] && c.relative_gain[0] < c.relative_gain[2]
        && c.difference[1] < c.difference[0] && c.difference[0] < c.difference[2]);
    double many[400], more[400], sum = 0.0, squares = 0.0;
    for (int i = 0; i < 400; i++) {
        many[i] = 1.0;
        more[i] = 1.0 + 0.1 * (double)tmoei_normal(1, 2, (uint64_t)i);
    }
    CHECK(tmoe_compare(ctx, many, more, 400, 7, &c) == TMOE_OK);
    for (int i = 0; i < 400; i++) {
        sum += more[i] - 1.0;
        squares += (more[i] - 1.0) * (more[i] - 1.0);
    }
    const double error = sqrt((squares / 400 - sum / 400 * (sum / 400)) / 400);
    CHECK_NEAR(c.difference[1], sum / 400 - 1.96 * error,
        0.15 * error); /* the normal interval, at this size */
    CHECK_NEAR(c.difference[2], sum / 400 + 1.96 * error, 0.15 * error);
    const double nothing[1] = { (double)NAN };
    CHECK(tmoe_compare(ctx, nothing, nothing, 1, 1, &c) == TMOE_OK
        && c.relative_gain[0] != c.relative_gain[0] && c.undefined == 1);
    tmoe_ctx_destroy(ctx);
}

/* Tasks are resampled in pairs: where every task gains the same, so does every resample, however
 * different the tasks. */
static void test_a_gain_that_is_the_same_everywhere_has_no_interval(void)
{
    const double base[5] = { 0.1, 0.9, 0.3, 0.5, 0.2 };
    double relative[5], absolute[5];
    tmoe_comparison c;
    for (int i = 0; i < 5; i++) {
        relative[i] = 1.1 * base[i];
        absolute[i] = base[i] + 0.05;
    }
    CHECK(tmoe_compare(ctx, base, relative, 5, 3, &c) == TMOE_OK);
    for (int i = 0; i < 3; i++) CHECK_NEAR(c.relative_gain[i], 0.1, 1e-9);
    CHECK(c.difference[2] - c.difference[1] > 0.01);
    CHECK(tmoe_compare(ctx, base, absolute, 5, 3, &c) == TMOE_OK);
    for (int i = 0; i < 3; i++) CHECK_NEAR(c.difference[i], 0.05, 1e-9);
    CHECK(c.relative_gain[2] - c.relative_gain[1] > 0.01);
}

/* tmoe_route_correlations in one line. */
static tmoe_result correlations(const float *routes, int tasks, int columns, const float *feature,
    int permutations, double *r, double *p)
{
    tmoe_correlation_test test;
    test.routes = routes;
    test.tasks = tasks;
    test.columns = columns;
    test.feature = feature;
    test.permutations = permutations;
    test.seed = 1;
    return tmoe_route_correlations(ctx, &test, r, p);
}

/* Three tasks have three places for the 1 of a feature, each equally likely in a shuffle: |r| there
 * is as 3, 1 and 2, so p is 1/3, 1 and 2/3. The data as they are count as one of the shuffles: a p
 * is never 0. */
static void test_p_is_the_share_of_all_shuffles(void)
{
    const float routes[3] = { 5.0f, 1.0f, 0.0f };
    const double expected[3] = { 1.0 / 3, 1.0, 2.0 / 3 };
    float many[40], feature[40];
    double r, p;
    for (int place = 0; place < 3; place++) {
        for (int t = 0; t < 3; t++) feature[t] = t == place ? 1.0f : 0.0f;
        CHECK(correlations(routes, 3, 1, feature, 3000, &r, &p) == TMOE_OK);
        CHECK_NEAR(p, expected[place], 0.04);
        CHECK((r > 0.0) == (place == 0));
        CHECK(correlations(routes, 3, 1, feature, 0, &r, &p) == TMOE_OK && p == 1.0);
    }
    for (int t = 0; t < 40; t++) {
        many[t] = (float)t;
        feature[t] = t < 20 ? 0.0f : 1.0f;
    }
    CHECK(correlations(many, 40, 1, feature, 9, &r, &p) == TMOE_OK);
    CHECK_NEAR(p, 0.1, 1e-12);
}

/* A planted feature is found with a small p, noise is not; p of noise is uniform enough: of 20
 * noise features at most 4 are below 0.1. */
static void test_route_correlations_find_planted_features_only(void)
{
    enum { N = 40, C = 6 };

    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    float routes[N * C], feature[N];
    double r[C], p[C], x[N], y[N];
    int below = 0;
    for (int t = 0; t < N; t++)
        for (int c = 0; c < C; c++)
            routes[t * C + c] = c == 4 ? 0.25f
                                       : tmoei_uniform(tmoei_random(3, 1, (uint64_t)(t * C + c)))
                    + (c == 2 && t % 4 == 0 ? 0.8f : 0.0f);
    for (int t = 0; t < N; t++) feature[t] = t % 4 == 0 ? 1.0f : 0.0f;
    CHECK(correlations(routes, N, C, feature, 500, r, p) == TMOE_OK);
    for (int c = 0; c < C; c++) { /* against the definition, cov / (sd sd) */
        double mx = 0.0, my = 0.0, xy = 0.0, xx = 0.0, yy = 0.0;
        for (int t = 0; t < N; t++) {
            x[t] = (double)routes[t * C + c];
            y[t] = (double)feature[t];
            mx += x[t] / N;
            my += y[t] / N;
        }
        for (int t = 0; t < N; t++) {
            xy += (x[t] - mx) * (y[t] - my);
            xx += pow(x[t] - mx, 2);
            yy += pow(y[t] - my, 2);
        }
        if (c == 4)
            CHECK(r[c] != r[c] && p[c] != p[c]); /* a constant column: undefined, and said so */
        else
            CHECK_NEAR(r[c], xy / sqrt(xx * yy), 1e-9);
    }
    CHECK(p[2] < 0.01);
    for (int k = 0; k < 20; k++) {
        double least = 1.0;
        for (int t = 0; t < N; t++)
            feature[t] = tmoei_random(9, (uint64_t)k, (uint64_t)t) % 2 ? 1.0f : 0.0f;
        CHECK(correlations(routes, N, C, feature, 200, r, p) == TMOE_OK);
        for (int c = 0; c < C; c++)
            if (p[c] < least) least = p[c];
        CHECK(least > 0.0);
        below += least < 0.1;
    }
    CHECK(below <= 4);
    tmoe_ctx_destroy(ctx);
}

/* Points on a line: 0, 1, 5, 6.5, 20: the tree and its heights by hand. */
static void test_clustering_of_a_known_tree(void)
{
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    const float x[10] = { 0, 0, 20, 0, 5, 0, 1, 0, 6.5f,
        0 }; /* rows 0: 0, 1: 20, 2: 5, 3: 1, 4: 6.5 */
    tmoe_join j[4];
    CHECK(tmoe_cluster(ctx, x, 5, 2, j) == TMOE_OK);
    CHECK(j[0].a == 0 && j[0].b == 3 && j[0].size == 2);
    CHECK_NEAR(j[0].height, 1.0, 1e-9);
    CHECK(j[1].a == 2 && j[1].b == 4 && j[1].size == 2);
    CHECK_NEAR(j[1].height, 1.5, 1e-9);
    CHECK(j[2].a == 5 && j[2].b == 6 && j[2].size == 4);
    CHECK_NEAR(j[2].height, (5 + 6.5 + 4 + 5.5) / 4, 1e-9);
    CHECK(j[3].size == 5 && ((j[3].a == 7 && j[3].b == 1) || (j[3].a == 1 && j[3].b == 7)));
    CHECK_NEAR(j[3].height, (20 + 15 + 19 + 13.5) / 4, 1e-9);
    CHECK(tmoe_cluster(ctx, x, 1, 2, j) == TMOE_OK); /* one task: no joins */
    const float y[4] = { 0, 1, 3,
        10 }; /* two, then a third: each point counts as one for the fourth */
    CHECK(tmoe_cluster(ctx, y, 4, 1, j) == TMOE_OK && j[1].size == 3 && j[2].size == 4);
    CHECK_NEAR(j[1].height, (3 + 2) / 2.0, 1e-9);
    CHECK_NEAR(j[2].height, (10 + 9 + 7) / 3.0, 1e-9);
    tmoe_ctx_destroy(ctx);
}

static void test_scores_and_readings_refuse_counts_that_make_no_sense(void)
{
    const double scores[2] = { 0.5, 1.0 };
    const float x[4] = { 0.0f, 1.0f, 2.0f, 3.0f };
    const char *const prediction = "yes", *const *const accepted = &prediction;
    tmoe_example example = { "is it", accepted, 1 };
    tmoe_comparison c;
    tmoe_join joins[2];
    double r, p, score = 7.0;
    CHECK(tmoe_compare(ctx, scores, scores, -1, 1, &c) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_cluster(ctx, x, -1, 2, joins) == TMOE_ERR_ARGUMENT);
    CHECK(correlations(x, -3, 1, x, 10, &r, &p) == TMOE_ERR_ARGUMENT);
    CHECK(correlations(x, 3, 1, x, -10, &r, &p) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_score(ctx, (tmoe_metric)TMOE_METRICS, &prediction, &example, 1, &score)
        == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_score(ctx, TMOE_METRIC_ACCURACY, &prediction, &example, 0, &score)
        == TMOE_ERR_ARGUMENT);
    CHECK(score == 7.0); /* a failed call changes nothing */
}

TEST_MAIN("test_data", ctx = tmoe_ctx_create(NULL); RUN(test_json_reads_what_is_json);
          RUN(test_json_refuses_what_is_not); RUN(test_the_callback_is_set_and_nothing_else);
          RUN(test_every_setting_is_set_and_read_by_its_name);
          RUN(test_json_numbers_have_a_point_in_every_locale);
          RUN(test_safetensors_headers_are_taken_as_the_reference_takes_them);
          RUN(test_npy_headers_are_parsed); RUN(test_saving_replaces_files_only);
          RUN(test_tokenizers_round_trip_any_bytes);
          RUN(test_a_tokenizer_refuses_arguments_that_make_no_sense);
          RUN(test_an_added_token_may_have_the_bytes_of_another);
          RUN(test_settings_of_a_tokenizer_that_change_ids_are_refused);
          RUN(test_letters_are_those_of_unicode_16); RUN(test_bpe_merges_in_order);
          RUN(test_words_are_cut_as_gpt2_cuts_them); RUN(test_a_word_of_a_megabyte_is_encoded);
          RUN(test_three_files_typed_in_an_editor_are_read);
          RUN(test_tasks_table_and_split_are_read); RUN(test_crossfit_and_json_lines_are_read);
          RUN(test_bad_task_data_is_named_with_file_and_line); RUN(test_a_bad_split_is_refused);
          RUN(test_crossfit_lines_are_stripped); RUN(test_a_split_may_begin_with_a_byte_order_mark);
          RUN(test_what_describes_a_task_must_be_utf8);
          RUN(test_a_task_that_is_added_must_be_sound);
          RUN(test_truncated_and_edited_model_files_are_refused_or_sound);
          RUN(test_a_failed_save_leaves_the_old_file); RUN(test_metrics_by_hand);
          RUN(test_metrics_against_the_reference);
          RUN(test_suite_test_items_never_occur_in_training);
          RUN(test_comparing_two_models_over_tasks);
          RUN(test_a_gain_that_is_the_same_everywhere_has_no_interval);
          RUN(test_p_is_the_share_of_all_shuffles);
          RUN(test_route_correlations_find_planted_features_only);
          RUN(test_clustering_of_a_known_tree);
          RUN(test_scores_and_readings_refuse_counts_that_make_no_sense); tmoe_ctx_destroy(ctx);)
