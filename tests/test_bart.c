/* BART folders without anybody's oracles: what is written is read back, what is broken is refused
 * by name, search does what its settings say. */
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"
#include "test.h"
#include <sys/stat.h>
#include "generate.h"

#define FOLDER "build/bart_folder"
static tmoe_ctx *ctx;

static tmoe_model *small_bart(int experts)
{
    static const char *const names[2] = { "first task", "second task" };
    tmoe_config c = tmoe_config_default();
    c.task_input = TMOE_TASK_TEXT;
    c.positions = TMOE_POSITION_LEARNED;
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    tmoe_task tasks[2];
    memset(tasks, 0, sizeof tasks);
    for (int i = 0; i < 2; i++) tasks[i].name = tasks[i].instruction = tasks[i].category = names[i];
    c.width = 16;
    c.encoder_ffn = 24;
    c.decoder_ffn = 40;
    c.encoder_heads = 2;
    c.decoder_heads = 4;
    c.encoder_layers = 1;
    c.decoder_layers = 2;
    c.source_tokens = c.target_tokens = 24;
    c.norm = TMOE_NORM_POST;
    c.positions = TMOE_POSITION_LEARNED;
    c.begin_in_target = c.specials_in_text = 1;
    c.experts = experts;
    c.init_std = 0.3f;
    tmoe_model *model = tmoe_model_create(ctx, &c, tokenizer, tasks, 2);
    CHECK(model != NULL);
    tmoe_tokenizer_destroy(tokenizer);
    return model;
}

/* bart-large-cnn's 50,264 rows do not reach <mask>, its tokenizer's last token. */
static void test_a_model_may_lack_the_last_tokens_of_its_tokenizer(void)
{
    tmoe_config c = tmoe_config_default();
    c.task_input = 0;
    tmoe_tokenizer *tokenizer = tmoe_tokenizer_bytes(ctx);
    char text[200];
    c.width = 16;
    c.encoder_ffn = c.decoder_ffn = 24;
    c.encoder_heads = c.decoder_heads = 2;
    c.encoder_layers = c.decoder_layers = 1;
    c.experts = 1;
    c.source_tokens = c.target_tokens = 24;
    c.norm = TMOE_NORM_POST;
    c.positions = TMOE_POSITION_LEARNED;
    c.begin_in_target = c.specials_in_text = 1;
    c.vocabulary = 3 + 'z';
    tmoe_model *model = tmoe_model_create(ctx, &c, tokenizer, NULL, 0);
    CHECK(model != NULL);
    CHECK(model && tmoe_answer_unseen(model, "", "yes", text, sizeof text) == TMOE_OK);
    CHECK(model && tmoe_answer_unseen(model, "", "zoo", text, sizeof text) == TMOE_ERR_DATA);
    CHECK_HAS(tmoe_error_message(ctx), "the input has token 125; the model has 125");
    tmoe_model_destroy(model);
    c.specials_in_text = 0;
    CHECK(tmoe_model_create(ctx, &c, tokenizer, NULL, 0) == NULL);
    CHECK_HAS(tmoe_error_message(ctx), "must be at least the tokenizer's");
    tmoe_tokenizer_destroy(tokenizer);
}

static char *slurp(const char *name, size_t *length)
{
    char path[200];
    (void)snprintf(path, sizeof path, FOLDER "/%s", name);
    char *text = tmoei_read_file(ctx, path, (size_t)1 << 30, length);
    CHECK(text != NULL);
    return text;
}

static void spit(const char *name, const char *text, size_t length)
{
    char path[200];
    (void)snprintf(path, sizeof path, FOLDER "/%s", name);
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(text, 1, length, file) == length && fclose(file) == 0);
}

/* Replaces the first `from` in a file by a text that is as long or shorter (filled up with spaces).
 * */
static void edit(const char *name, const char *from, const char *to)
{
    size_t length = 0;
    char *text = slurp(name, &length);
    const size_t n = strlen(from);
    size_t at = 0;
    while (at + n <= length && memcmp(text + at, from, n)) at++;
    CHECK(at + n <= length && strlen(to) <= n);
    memset(text + at, ' ', n);
    memcpy(text + at, to, strlen(to));
    spit(name, text, length);
    tmoei_free(ctx, text);
}

static void refused(const char *part)
{
    tmoe_model *model = tmoe_bart_load(ctx, FOLDER);
    CHECK(model == NULL && ctx->error != TMOE_OK);
    CHECK_HAS(tmoe_error_message(ctx), part);
    tmoe_model_destroy(model);
    ctx->error = TMOE_OK;
}

static void write_again(void)
{
    tmoe_model *model = small_bart(1);
    CHECK(tmoe_export_dense(model, NULL, NULL, FOLDER) == TMOE_OK);
    tmoe_model_destroy(model);
}

static void test_a_written_folder_is_read_bit_by_bit(void)
{
    tmoe_model *model = small_bart(1);
    tmoe_generation *g = tmoe_model_generation(model);
    g->beams = 3;
    g->max_length = 17;
    g->min_length = 2;
    g->length_penalty = 0.7f;
    g->early_stopping = TMOE_EARLY_STOPPING_NEVER;
    g->no_repeat_ngram = 3;
    g->returned = 2;
    g->forced_end_id = 2;
    g->forced_begin_id = 0;
    CHECK(tmoe_export_dense(model, NULL, NULL, FOLDER) == TMOE_OK);
    tmoe_model *again = tmoe_bart_load(ctx, FOLDER);
    if (!again) {
        printf("%s\n", tmoe_error_message(ctx));
        test_failures++;
    } else {
        CHECK(again->size == model->size
            && memcmp(again->theta, model->theta, model->size * sizeof(float)) == 0);
        CHECK(memcmp(&again->generation, g, sizeof *g) == 0);
        CHECK(
            again->tokenizer && again->tokenizer->vocabulary == 259 && again->config.start_id == 2);
    }
    tmoe_model_destroy(again);
    tmoe_model_destroy(model);
}

static void test_every_wrong_tensor_is_named(void)
{
    write_again();
    edit("model.safetensors", "model.encoder.layers.0.fc1.weight",
        "model.encoder.layers.0.fc9.weight");
    edit("model.safetensors", "model.decoder.layers.1.fc2.bias", "model.decoder.layers.7.fc2.bias");
    refused("model.encoder.layers.0.fc1.weight is missing");
    refused("model.decoder.layers.1.fc2.bias is missing");
    refused("model.encoder.layers.0.fc9.weight is unknown");
    refused("model.decoder.layers.7.fc2.bias is unknown");
    write_again();
    edit("config.json", "\"encoder_ffn_dim\":24", "\"encoder_ffn_dim\":23");
    refused("model.encoder.layers.0.fc1.weight has 384 values in 2 dimensions, not (23,16)");
    write_again(); /* the same numbers in another shape */
    edit("model.safetensors", "model.encoder.layers.0.fc1.bias\":{\"dtype\":\"F32\",\"shape\":[24]",
        "model.encoder.layers.0.fc1.bias\":{\"dtype\":\"F32\",\"shape\":[ ]");
    refused("model.encoder.layers.0.fc1.bias");
    write_again();
    edit("model.safetensors", "\"model.decoder.layers.1.fc2.bias\"",
        "\"encoder.layers.0.fc2.bias\"");
    refused("model.encoder.layers.0.fc2.bias is there twice");
}

/* More unknown tensors than a message has room for: as many names as fit, then dots; in short time.
 * */
static void test_a_message_that_is_full_says_so(void)
{
    tmoei_buffer text = { NULL, 0, 0, 0 };
    char bytes[8];
    write_again();
    tmoei_buffer_add(ctx, &text, "{", 1);
    for (int i = 0; i < 100000; i++)
        tmoei_buffer_print(ctx, &text,
            "%s\"tensor%d\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}", i ? "," : "",
            i);
    tmoei_buffer_add(ctx, &text, "}", 1);
    for (int i = 0; i < 8; i++) bytes[i] = (char)(text.length >> 8 * i);
    FILE *file = fopen(FOLDER "/model.safetensors", "wb");
    CHECK(file && fwrite(bytes, 1, 8, file) == 8
        && fwrite(text.data, 1, text.length, file) == text.length && fclose(file) == 0);
    tmoei_buffer_free(ctx, &text);
    refused("model.shared.weight is missing");
    refused("tensor0 is unknown");
    refused("...");
}

/* Gives a tensor another name, of any length. */
static void rename_tensor(const char *from, const char *to)
{
    size_t length = 0, header = 0;
    char *file = slurp("model.safetensors", &length);
    for (int i = 0; i < 8; i++) header |= (size_t)(unsigned char)file[i] << 8 * i;
    char *at = strstr(file + 8, from), *all = (char *)malloc(length + strlen(to));
    CHECK(at && all && at < file + 8 + header);
    if (at && all) {
        const size_t before = (size_t)(at - file), a = strlen(from), b = strlen(to);
        memcpy(all, file, before);
        memcpy(all + before, to, b);
        memcpy(all + before + b, at + a, length - before - a);
        for (int i = 0; i < 8; i++) all[i] = (char)((header + b - a) >> 8 * i);
        spit("model.safetensors", all, length + b - a);
    }
    free(all);
    tmoei_free(ctx, file);
}

/* Adds an empty tensor to the weights. */
static void add_tensor(const char *name)
{
    size_t length = 0, header = 0;
    char entry[200], *file = slurp("model.safetensors", &length);
    const int n = snprintf(entry, sizeof entry,
        "\"%s\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},", name);
    const size_t more = (size_t)n;
    char *all = (char *)malloc(length + more);
    CHECK(all && file[8] == '{');
    if (all) {
        for (int i = 0; i < 8; i++) header |= (size_t)(unsigned char)file[i] << 8 * i;
        for (int i = 0; i < 8; i++) all[i] = (char)((header + more) >> 8 * i);
        all[8] = '{';
        memcpy(all + 9, entry, more);
        memcpy(all + 9 + more, file + 9, length - 9);
        spit("model.safetensors", all, length + more);
    }
    free(all);
    tmoei_free(ctx, file);
}

/* Tensors that real files hold and transformers ignores do not end the load; others do. */
static void test_tensors_that_no_bart_needs_are_ignored(void)
{
    static const char *const names[4] = { "model.encoder.version", "decoder.version",
        "model.encoder.embed_positions.position_ids", "classification_head.dense.weight" };
    write_again();
    for (int i = 0; i < 4; i++) add_tensor(names[i]);
    tmoe_model *model = tmoe_bart_load(ctx, FOLDER);
    if (!model) printf("%s\n", tmoe_error_message(ctx));
    CHECK(model != NULL);
    tmoe_model_destroy(model);
    add_tensor("model.encoder.adapter.weight");
    refused("model.encoder.adapter.weight is unknown");
}

/* What tmoe_bart_load would refuse is not written, and a refused export makes no folder. */
static void test_an_unsound_generation_is_not_exported(void)
{
    static const char folder[] = "build/bart_never";
    tmoe_model *model = small_bart(1), *mixture = small_bart(3);
    tmoe_model_generation(model)->early_stopping = (tmoe_early_stopping)7;
    CHECK(tmoe_export_dense(model, NULL, NULL, folder) == TMOE_ERR_DATA);
    CHECK_HAS(tmoe_error_message(ctx), "early_stopping is 7");
    CHECK(tmoe_export_dense(mixture, "third task", NULL, folder) == TMOE_ERR_ARGUMENT);
    struct stat about;
    CHECK(stat(folder, &about) != 0);
    tmoe_model_destroy(model);
    tmoe_model_destroy(mixture);
}

/* A BART has tables of positions: what has none cannot become one, and a BART has always them. */
static void test_rotary_positions_are_not_exported(void)
{
    static const char folder[] = "build/bart_rotary";
    tmoe_model *bart = small_bart(1);
    tmoe_config c = *tmoe_model_config(bart);
    CHECK(c.positions == TMOE_POSITION_LEARNED);
    c.positions = TMOE_POSITION_ROTARY;
    tmoe_model *model = tmoe_model_create(ctx, &c, tmoe_model_tokenizer(bart), NULL, 0);
    CHECK(model && tmoe_export_dense(model, NULL, NULL, folder) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(ctx), "TMOE_POSITION_LEARNED");
    struct stat about;
    CHECK(stat(folder, &about) != 0);
    tmoe_model_destroy(model);
    tmoe_model_destroy(bart);
}

/* Some writers keep one of the embedding's names only. */
static void test_the_embedding_is_found_by_any_of_its_names(void)
{
    static const char *const names[3] = { "lm_head.weight", "encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight" };
    for (int i = 0; i < 3; i++) {
        tmoe_model *model = small_bart(1), *again;
        CHECK(tmoe_export_dense(model, NULL, NULL, FOLDER) == TMOE_OK);
        rename_tensor("model.shared.weight", names[i]);
        again = tmoe_bart_load(ctx, FOLDER);
        CHECK(again && memcmp(again->theta, model->theta, model->size * sizeof(float)) == 0);
        tmoe_model_destroy(again);
        tmoe_model_destroy(model);
    }
}

/* Lengths with and without the start token, lists of one, and what cannot be done is said. */
static void test_generation_settings_are_transformers(void)
{
    static const struct {
        const char *text, *wrong;
        int longest, shortest, early;
    } cases[] = { { "{}", NULL, 21, 0, TMOE_EARLY_STOPPING_FALSE },
        { "{\"max_length\":20,\"early_stopping\":true}", NULL, 20, 0, TMOE_EARLY_STOPPING_TRUE },
        { "{\"max_new_tokens\":6,\"max_length\":20,\"min_length\":2}", NULL, 7, 2, 0 },
        { "{\"min_new_tokens\":0,\"max_length\":9}", NULL, 9, 1, 0 },
        { "{\"eos_token_id\":[2],\"early_stopping\":\"never\"}", NULL, 21, 0,
            TMOE_EARLY_STOPPING_NEVER },
        { "{\"repetition_penalty\":1.0,\"do_sample\":false,\"bad_words_ids\":null,\"diversity_"
          "penalty\":0.0,\"constraints\":[]}",
            NULL, 21, 0, 0 },
        { "{\"eos_token_id\":[2,1]}", "eos_token_id", 0, 0, 0 },
        { "{\"early_stopping\":\"sometimes\"}", "early_stopping is \"sometimes\"", 0, 0, 0 },
        { "{\"max_new_tokens\":0}", "max_new_tokens", 0, 0, 0 },
        { "{\"min_new_tokens\":-1}", "min_new_tokens", 0, 0, 0 },
        { "{\"repetition_penalty\":1.2}", "repetition_penalty is set", 0, 0, 0 },
        { "{\"do_sample\":true}", "do_sample is set", 0, 0, 0 },
        { "{\"bad_words_ids\":[[7]]}", "bad_words_ids is set", 0, 0, 0 },
        { "{\"encoder_no_repeat_ngram_size\":3}", "encoder_no_repeat_ngram_size is set", 0, 0, 0 },
        { "{\"num_beam_groups\":2}", "num_beam_groups is set", 0, 0, 0 },
        { "{\"sequence_bias\":{\"a\":1}}", "sequence_bias is set", 0, 0, 0 },
        { "{\"stop_strings\":\"end\"}", "stop_strings is set", 0, 0, 0 } };

    write_again();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[300];
        (void)snprintf(text, sizeof text, "{\"decoder_start_token_id\":2%s%s",
            cases[i].text[1] == '}' ? "" : ",", cases[i].text + 1);
        spit("generation_config.json", text, strlen(text));
        if (cases[i].wrong) {
            refused(cases[i].wrong);
            continue;
        }
        tmoe_model *model = tmoe_bart_load(ctx, FOLDER);
        if (!model) {
            printf("%s\n", tmoe_error_message(ctx));
            test_failures++;
            continue;
        }
        CHECK(model->generation.max_length == cases[i].longest
            && model->generation.min_length == cases[i].shortest);
        CHECK((int)model->generation.early_stopping == cases[i].early);
        tmoe_model_destroy(model);
    }
    static const char *const others[][2] = {
        { "{}", "generation_config.json: there is no decoder_start_token_id" },
        { "{\"decoder_start_token_id\":0}", "or another than in config.json" },
        { "[2]", "must be a JSON object" }, { "7", "must be a JSON object" }
    };
    for (int i = 0; i < 4; i++) {
        spit("generation_config.json", others[i][0], strlen(others[i][0]));
        refused(others[i][1]);
    }
    (void)remove(FOLDER
        /* old folders: all in config.json, where a later key goes before an earlier one */
        "/generation_config.json");
    edit("config.json", "\"is_encoder_decoder\":true,\"tie_word_embeddings\":true",
        "\"max_length\":8,\"max_length\":9");
    tmoe_model *old = tmoe_bart_load(ctx, FOLDER);
    CHECK(old && old->generation.max_length == 9);
    tmoe_model_destroy(old);
}

/* What is found in a text before it is cut into words, and stays in answers: tokens that somebody
 * added and that are not special. */
static void test_added_tokens_that_are_not_special_stay_in_the_text(void)
{
    tmoe_model *model = small_bart(1);
    int ids[16];
    char text[64];
    size_t n = 0, length = 0, size = 0;
    CHECK(tmoe_export_dense(model, NULL, NULL, FOLDER) == TMOE_OK);
    tmoe_model_destroy(model);
    char *json = slurp("tokenizer.json", &size), *list = strstr(json, "\"added_tokens\":["),
         *bigger = (char *)malloc(size + 200);
    CHECK(list && bigger);
    if (!list || !bigger) {
        free(bigger);
        tmoei_free(ctx, json);
        return;
    }
    const size_t at = (size_t)(list - json) + strlen("\"added_tokens\":[");
    static const char foo[] = "{\"id\":259,\"content\":\"foo\",\"single_word\":false,\"lstrip\":"
                              "false,\"rstrip\":false,\"normalized\":true,\"special\":false},";
    memcpy(bigger, json, at);
    memcpy(bigger + at, foo, sizeof foo - 1);
    memcpy(bigger + at + sizeof foo - 1, json + at, size - at);
    spit("tokenizer.json", bigger, size + sizeof foo - 1);
    for (int round = 0; round < 2; round++) { /* as it was read, and as it is written again */
        tmoe_tokenizer *t = tmoe_tokenizer_load(ctx, FOLDER);
        CHECK(t != NULL);
        if (!t) {
            printf("%s\n", tmoe_error_message(ctx));
            break;
        }
        CHECK(tmoe_tokenizer_encode(t, "a foo", 5,
                  TMOE_TOKENIZER_SPECIALS | TMOE_TOKENIZER_FIND_SPECIALS, ids, 16, &n)
                == TMOE_OK
            && n == 5 && ids[3] == 259);
        CHECK(tmoe_tokenizer_decode(t, ids, n, TMOE_TOKENIZER_SKIP_SPECIALS, text, sizeof text,
                  &length)
                == TMOE_OK
            && strcmp(text, "a foo") == 0);
        tmoei_buffer out = { NULL, 0, 0, 0 };
        tmoei_tokenizer_to_json(ctx, t, &out);
        spit("tokenizer.json", out.data, out.length);
        tmoei_buffer_free(ctx, &out);
        tmoe_tokenizer_destroy(t);
    }
    free(bigger);
    tmoei_free(ctx, json);
}

/* An empty list of added tokens: nothing is found in a text (the fuzzer met pointer arithmetic on
 * no list). */
static void test_a_tokenizer_may_have_no_added_tokens(void)
{
    static const char json[] =
        "{\"added_tokens\":[],\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":"
        "\"BPE\",\"vocab\":{\"<s>\":0,\"<pad>\":1,\"</s>\":2,"
        "\"<unk>\":3,\"a\":4,\"b\":5,\"ab\":6},\"merges\":[\"a b\"]}}";
    int ids[8];
    size_t n = 0;
    write_again();
    spit("tokenizer.json", json, sizeof json - 1);
    tmoe_tokenizer *t = tmoe_tokenizer_load(ctx, FOLDER);
    CHECK(t
        && tmoe_tokenizer_encode(t, "ab<s>", 5, TMOE_TOKENIZER_FIND_SPECIALS, ids, 8, &n) == TMOE_OK
        && n == 4 && ids[0] == 6 && ids[1] == 3);
    tmoe_tokenizer_destroy(t);
}

/* tokenizer_config.json goes before tokenizer.json, as in transformers. */
static void test_the_space_before_a_text_is_the_tokenizer_configs(void)
{
    static const char *const texts[3] = { "{\"add_prefix_space\":true}",
        "{\"add_prefix_space\":false}", "{}" };
    static const int expected[3] = { 1, 0, 0 };
    write_again();
    for (int i = 0; i < 3; i++) {
        spit("tokenizer_config.json", texts[i], strlen(texts[i]));
        tmoe_tokenizer *tokenizer = tmoe_tokenizer_load(ctx, FOLDER);
        CHECK(tokenizer && tmoei_bpe_of(tokenizer)->prefix_space == expected[i]);
        tmoe_tokenizer_destroy(tokenizer);
    }
    spit("tokenizer_config.json", "{", 1);
    CHECK(tmoe_tokenizer_load(ctx, FOLDER) == NULL);
    CHECK_HAS(tmoe_error_message(ctx), "tokenizer_config.json:1");
    ctx->error = TMOE_OK;
}

static void test_configs_that_bart_never_had_are_refused(void)
{
    static const char *const edits[][3] = { { "\"model_type\":\"bart\"", "\"model_type\":\"t5\"",
                                                "model_type" },
        { "\"tie_word_embeddings\":true", "\"tie_word_embeddings\":null", "" },
        { "\"tie_word_embeddings\":true", "\"tie_word_embeddings\":0", "tie_word_embeddings" },
        { "\"activation_function\":\"gelu\"", "\"activation_function\":\"silu\"",
            "activation_function is silu" },
        { "\"d_model\":16", "\"d_model\":-1", "d_model" },
        { "\"d_model\":16", "\"d_modes\":16", "d_model" },
        { "\"encoder_layers\":1", "\"encoder_layers\":9", "encoder.layers.8" },
        { "\"decoder_attention_heads\":4", "\"decoder_attention_heads\":3", "decoder_heads" } };
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        write_again();
        edit("config.json", edits[i][0], edits[i][1]);
        if (edits[i][2][0])
            refused(edits[i][2]);
        else {
            tmoe_model *model = tmoe_bart_load(ctx, FOLDER);
            CHECK(model != NULL);
            tmoe_model_destroy(model);
        }
    }
    write_again();
    (void)remove(FOLDER "/config.json");
    refused("config.json");
}

/* An index that leads out of the folder, to nothing, or does not say the truth. */
static void test_shards_are_where_the_index_says(void)
{
    static const char *const bad[][2] = { { "{\"weight_map\":{\"a\":\"../x.safetensors\"}}",
                                              "folder" },
        { "{\"weight_map\":{\"a\":\"/etc/x\"}}", "folder" },
        { "{\"weight_map\":{\"a\":\"none.safetensors\"}}", "none.safetensors" },
        { "{\"weight_map\":{\"a\":\"part.safetensors\"}}", "a must be in part.safetensors" },
        { "{}", "weight_map" }, { "{\"weight_map\":{\"a\":7}}", "folder" } };
    write_again();
    (void)remove(FOLDER "/part.safetensors");
    CHECK(rename(FOLDER "/model.safetensors", FOLDER "/part.safetensors") == 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        spit("model.safetensors.index.json", bad[i][0], strlen(bad[i][0]));
        refused(bad[i][1]);
    }
    /* a second file with the same tensors: none of them is where it alone is */
    size_t length = 0;
    char *twin = slurp("part.safetensors", &length);
    static const char both[] = "{\"weight_map\":{\"final_logits_bias\":\"part.safetensors\","
                               "\"model.shared.weight\":\"twin.safetensors\"}}";
    spit("twin.safetensors", twin, length);
    tmoei_free(ctx, twin);
    spit("model.safetensors.index.json", both, sizeof both - 1);
    refused("final_logits_bias must be in part.safetensors and in no other file");
    (void)remove(FOLDER "/twin.safetensors");
    static const char good[] = "{\"weight_map\":{\"model.shared.weight\":\"part.safetensors\"}}";
    spit("model.safetensors.index.json", good, sizeof good - 1);
    tmoe_model *model = tmoe_bart_load(ctx, FOLDER);
    CHECK(model != NULL);
    tmoe_model_destroy(model);
    (void)remove(FOLDER "/model.safetensors.index.json");
    (void)remove(FOLDER "/part.safetensors");
    refused("has neither model.safetensors nor model.safetensors.index.json");
}

static void test_broken_tokenizer_files_are_refused(void)
{
    static const char *const bad[][2] = { { "{\"model\":{\"type\":\"Unigram\"}}",
                                              "byte-level BPE" },
        { "[]", "must be a JSON object" }, { "{}", "byte-level BPE" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{"
          "\"a\":0,\"b\":0},\"merges\":[]}}",
            "two tokens have the id 0" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{"
          "\"a\":-1},\"merges\":[]}}",
            "id" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{"
          "\"a\":1e9},\"merges\":[]}}",
            "id" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{"
          "\"a\":0},\"merges\":[]}}",
            "<s>" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>"
          "\":0,\"<pad>\":1,\"</s>\":2},\"merges\":[]}}",
            "byte" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>"
          "\":0,\"<pad>\":1,\"</s>\":2,\"<unk>\":3,\"a\":4},\"merges\":[\"a a\"]}}",
            "merge 1" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>"
          "\":0,\"<pad>\":1,\"</s>\":2,\"<unk>\":3,\"a\":4},\"merges\":[\"aa\"]}}",
            "merge 1" },
        { "{\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>"
          "\":0,\"\\u4e00\":1},\"merges\":[]}}",
            "not byte-level" },
        { "{\"added_tokens\":[{\"id\":0,\"content\":\"<s>\",\"rstrip\":true}],\"pre_tokenizer\":{"
          "\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"<s>\":0,\"<pad>\":1},"
          "\"merges\":[]}}",
            "'<s>': rstrip" } };
    write_again();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        spit("tokenizer.json", bad[i][0], strlen(bad[i][0]));
        refused(bad[i][1]);
        CHECK(tmoe_tokenizer_load(ctx, FOLDER) == NULL);
        ctx->error = TMOE_OK;
    }
    (void)remove(FOLDER "/tokenizer.json");
    tmoe_model *model = tmoe_bart_load(ctx, FOLDER); /* without one: token ids only */
    CHECK(model && model->tokenizer == NULL);
    tmoe_model_destroy(model);
    static const char vocabulary[] = "{\"<s>\":0,\"<pad>\":1,\"</s>\":2,\"<unk>\":3,\"a\":4}",
                      merges[] = "a\n"; /* a bad pair, and a config that is read all the same */
    spit("vocab.json", vocabulary, sizeof vocabulary - 1);
    spit("merges.txt", merges, sizeof merges - 1);
    spit("tokenizer_config.json", "{\"add_prefix_space\":true}", 25);
    const size_t in_use = ctx->bytes_now;
    CHECK(tmoe_tokenizer_load(ctx, FOLDER) == NULL);
    CHECK_HAS(tmoe_error_message(ctx), "no merge");
    CHECK(ctx->bytes_now == in_use);
    (void)remove(FOLDER "/vocab.json");
    (void)remove(FOLDER "/merges.txt");
    (void)remove(FOLDER "/tokenizer_config.json");
}

/* A task of a mixture, cut out: the folder computes what the mixture computes for that task. */
static void test_a_task_cut_out_computes_the_same(void)
{
    static const int ids[] = { 0, 80, 99, 70, 2 }, length = 5;
    tmoe_model *model = small_bart(3);
    int tokens[25], again[25], n, m;
    float score, same;
    tmoe_generation how = *tmoe_model_generation(model);
    how.beams = 4;
    how.max_length = 20;
    CHECK(tmoe_export_dense(model, NULL, NULL, FOLDER) == TMOE_ERR_ARGUMENT);
    ctx->error = TMOE_OK;
    CHECK(tmoe_export_dense(model, "Second Task", NULL, FOLDER) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(ctx), "second task");
    float route[64]; /* the same cut by its route */
    CHECK(tmoe_route_of_task(model, 1, route) == TMOE_OK);
    CHECK(tmoe_export_dense(model, NULL, route, FOLDER) == TMOE_OK);
    tmoe_model *by_route = tmoe_bart_load(ctx, FOLDER);
    CHECK(tmoe_export_dense(model, "second task", NULL, FOLDER) == TMOE_OK);
    tmoe_model *dense = tmoe_bart_load(ctx, FOLDER);
    CHECK(dense != NULL);
    CHECK(generate(model, 1, ids, &length, 1, &how, tokens, &n, &score) == TMOE_OK);
    if (dense) CHECK(generate(dense, -1, ids, &length, 1, &how, again, &m, &same) == TMOE_OK);
    CHECK(dense && by_route && dense->size == by_route->size
        && memcmp(dense->theta, by_route->theta, dense->size * sizeof(float)) == 0);
    tmoe_model_destroy(by_route);
    CHECK(n == m && memcmp(tokens, again, (size_t)n * sizeof(int)) == 0 && score == same);
    tmoe_config c = model->config;
    c.mix = TMOE_MIX_OUTPUT;
    tmoe_model *outputs = tmoe_model_derive(ctx, model, NULL, &c, model->tasks, 2);
    CHECK(outputs && tmoe_export_dense(outputs, "second task", NULL, FOLDER) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(ctx), "TMOE_MIX_PARAM");
    ctx->error = TMOE_OK;
    tmoe_model_destroy(outputs);
    tmoe_model_destroy(dense);
    tmoe_model_destroy(model);
}

/* A vector that layers read becomes a part of the folder's positions. */
static void test_a_task_vector_is_exported_as_a_part_of_the_positions(void)
{
    static const int ids[] = { 0, 80, 99, 70, 2 }, length = 5;
    tmoe_model *model = small_bart(3);
    tmoe_config c = model->config;
    tmoe_generation how = *tmoe_model_generation(model);
    int tokens[2][25], again[25], n[2], m;
    float scores[2], same;
    how.beams = 4;
    how.max_length = 20;
    c.task_input |= TMOE_TASK_VECTOR;
    tmoe_model *reader = tmoe_model_derive(ctx, model, NULL, &c, model->tasks, 2);
    CHECK(reader != NULL);
    if (!reader) return;
    for (int decoder = 0; decoder < 2; decoder++) {
        const tmoei_parameter *p =
            &reader->parameters[reader->shared[TMOEI_ENCODER_TASK + decoder]];
        for (size_t i = 0; i < p->size; i++)
            reader->theta[p->offset + i] = 0.5f * tmoei_normal(7, (uint64_t)decoder, i);
    }
    reader->version++;
    for (int task = 0; task < 2; task++)
        CHECK(generate(reader, task, ids, &length, 1, &how, tokens[task], &n[task], &scores[task])
            == TMOE_OK);
    CHECK(scores[0] != scores[1]);
    float route[64]; /* alone it does not say whose vector is meant */
    CHECK(tmoe_route_of_task(reader, 1, route) == TMOE_OK);
    CHECK(tmoe_export_dense(reader, NULL, route, FOLDER) == TMOE_ERR_ARGUMENT);
    CHECK(tmoe_export_dense(reader, "second task", NULL, FOLDER) == TMOE_OK);
    tmoe_model *dense = tmoe_bart_load(ctx, FOLDER);
    CHECK(dense && generate(dense, -1, ids, &length, 1, &how, again, &m, &same) == TMOE_OK);
    CHECK(n[1] == m && memcmp(tokens[1], again, (size_t)m * sizeof(int)) == 0);
    CHECK(scores[1] == same);
    tmoe_model_destroy(dense);
    tmoe_model_destroy(reader);
    tmoe_model_destroy(model);
}

/* What the settings promise holds for what comes out, whatever the weights are. */
static void test_generation_keeps_its_promises(void)
{
    tmoe_model *model = small_bart(1);
    int ids[40], lengths[6] = { 3, 7, 5, 9, 4, 6 }, used = 0, tokens[6 * 4 * 25], counts[24];
    float scores[24];
    for (int i = 0; i < 6; used += lengths[i++])
        for (int j = 0; j < lengths[i]; j++)
            ids[used + j] = j == 0 ? 0
                : j == lengths[i] - 1
                ? 2
                : 3 + (int)tmoei_below(tmoei_random(3, (uint64_t)i, (uint64_t)j), 256);
    for (int beams = 1; beams <= 4;
         beams += 3) { /* a forced end goes before a forced begin, as in transformers */
        tmoe_generation how = *tmoe_model_generation(model);
        how.beams = beams;
        how.returned = 1;
        how.max_length = 2;
        how.forced_begin_id = 77;
        how.forced_end_id = 2;
        CHECK(generate(model, -1, ids, lengths, 1, &how, tokens, counts, scores) == TMOE_OK
            && tokens[1] == 2);
    }
    { /* one answer where four are asked for: the others are the start token */
        tmoe_generation how = *tmoe_model_generation(model);
        how.beams = how.returned = 4;
        how.max_length = 2;
        how.forced_end_id = 2;
        CHECK(generate(model, -1, ids, lengths, 1, &how, tokens, counts, scores) == TMOE_OK);
        for (int i = 0; i < 4; i++)
            CHECK(counts[i] == (i ? 1 : 2) && tokens[2 * i] == 2 && tokens[2 * i + 1] == (i ? 1 : 2)
                && (scores[i] < -1e8f) == (i > 0));
    }
    for (int kind = 0; kind < 12; kind++) {
        tmoe_generation how = *tmoe_model_generation(model);
        how.beams = kind % 3 == 0 ? 1 : kind % 3 == 1 ? 4 : 7;
        how.returned = how.beams < 4 ? 1 : 4;
        how.max_length = 15;
        how.min_length = kind < 6 ? 0 : 6;
        how.no_repeat_ngram = kind % 2 ? 2 : 0;
        how.early_stopping = (tmoe_early_stopping)(kind % 3);
        how.length_penalty = kind < 4 ? 1.0f : 0.4f;
        how.forced_begin_id = kind % 4 == 1 ? 77 : -1;
        how.forced_end_id = kind % 4 == 2 ? 2 : -1;
        CHECK(generate(model, -1, ids, lengths, 6, &how, tokens, counts, scores) == TMOE_OK);
        for (int i = 0; i < 6 * how.returned; i++) {
            const int *t = tokens + i * 15, n = counts[i];
            CHECK(n >= 2 && n <= 15 && t[0] == 2 && (n == 15 || t[n - 1] == 2));
            for (int j = 1; j < n - 1; j++) CHECK(t[j] != 2);
            for (int j = n; j < 15; j++) CHECK(t[j] == 1);
            if (t[n - 1] == 2 && n < 15) CHECK(n > how.min_length);
            if (how.forced_begin_id >= 0) CHECK(t[1] == 77);
            if (how.forced_end_id >= 0 && n == 15) CHECK(t[14] == 2);
            for (int a = 1; how.no_repeat_ngram && a < n - 2; a++)
                for (int b = a + 1; b < n - 1; b++) CHECK(t[a] != t[b] || t[a + 1] != t[b + 1]);
            if (how.beams > 1 && i % how.returned) CHECK(scores[i] <= scores[i - 1]);
        }
    }
    /* each request gets what it gets alone, and a beam's score is the likelihood of its tokens */
    tmoe_generation how = *tmoe_model_generation(model);
    how.beams = 4;
    how.max_length = 12;
    how.length_penalty = 0.0f;
    CHECK(generate(model, -1, ids, lengths, 6, &how, tokens, counts, scores) == TMOE_OK);
    for (int i = 0, at = 0; i < 6; at += lengths[i++]) {
        int alone[12], n;
        float score;
        CHECK(generate(model, -1, ids + at, lengths + i, 1, &how, alone, &n, &score) == TMOE_OK);
        CHECK(n == counts[i] && memcmp(alone, tokens + i * 12, (size_t)n * sizeof(int)) == 0);
        CHECK_NEAR(score, scores[i], 1e-4);
        const tmoei_guide guide = tmoei_guide_of(-1);
        tmoei_texts source, label;
        double likelihood = 0.0;
        size_t ends[2] = { 0, (size_t)lengths[i] }, label_ends[2] = { 0, (size_t)n - 1 };
        memset(&source, 0, sizeof source);
        memset(&label, 0, sizeof label);
        source.ids = ids + at;
        source.offsets = ends;
        source.count = 1;
        source.ids_used = ends[1];
        label.ids = alone + 1;
        label.offsets = label_ends;
        label.count = 1;
        label.ids_used = label_ends[1];
        CHECK(tmoei_log_likelihoods(model, &guide, &source, &label, &likelihood) == TMOE_OK);
        CHECK_NEAR(likelihood, score, 2e-4);
    }
    how.beams = 0;
    CHECK(generate(model, -1, ids, lengths, 6, &how, tokens, counts, scores) == TMOE_ERR_ARGUMENT);
    how.beams = 2;
    how.returned = 3;
    CHECK(generate(model, -1, ids, lengths, 6, &how, tokens, counts, scores) == TMOE_ERR_ARGUMENT);
    how.returned = 1;
    ids[1] = 259;
    CHECK(generate(model, -1, ids, lengths, 6, &how, tokens, counts, scores) == TMOE_ERR_ARGUMENT);
    CHECK_HAS(tmoe_error_message(ctx), "request 0");
    ctx->error = TMOE_OK;
    tmoe_model_destroy(model);
}

/* A saved model is the file itself: nothing is copied, writing to it changes no file. */
static void test_a_saved_model_is_used_as_it_lies(void)
{
    static const char path[] = "build/test_mapped.safetensors";
    tmoe_model *model = small_bart(3);
    CHECK(tmoe_model_save(model, path) == TMOE_OK);
    tmoe_model *mapped = tmoe_model_load(ctx, path);
    CHECK(mapped != NULL);
    if (mapped) {
#if defined(__unix__) || defined(__APPLE__)
        CHECK(mapped->mapping != NULL);
#endif
        CHECK(memcmp(mapped->theta, model->theta, model->size * sizeof(float)) == 0);
        for (size_t i = 0; i < mapped->size; i++) mapped->theta[i] += 1.0f;
        tmoe_model_destroy(mapped);
        mapped = tmoe_model_load(ctx, path);
        CHECK(mapped && memcmp(mapped->theta, model->theta, model->size * sizeof(float)) == 0);
        CHECK(tmoe_model_save(mapped, path) == TMOE_OK); /* over the file that it lies in */
        CHECK(memcmp(mapped->theta, model->theta, model->size * sizeof(float)) == 0);
    }
    tmoe_model_destroy(mapped);
    tmoe_model_destroy(model);
    (void)remove(path);
}

TEST_MAIN(
    "test_bart", ctx = tmoe_ctx_create(NULL); (void)tmoei_make_folder(ctx, FOLDER);
    const size_t before = tmoe_ctx_bytes(ctx, NULL); RUN(test_a_written_folder_is_read_bit_by_bit);
    RUN(test_every_wrong_tensor_is_named); RUN(test_a_message_that_is_full_says_so);
    RUN(test_rotary_positions_are_not_exported);
    RUN(test_the_embedding_is_found_by_any_of_its_names);
    RUN(test_tensors_that_no_bart_needs_are_ignored);
    RUN(test_an_unsound_generation_is_not_exported); RUN(test_generation_settings_are_transformers);
    RUN(test_added_tokens_that_are_not_special_stay_in_the_text);
    RUN(test_a_tokenizer_may_have_no_added_tokens);
    RUN(test_the_space_before_a_text_is_the_tokenizer_configs);
    RUN(test_configs_that_bart_never_had_are_refused); RUN(test_shards_are_where_the_index_says);
    RUN(test_broken_tokenizer_files_are_refused); RUN(test_a_task_cut_out_computes_the_same);
    RUN(test_a_task_vector_is_exported_as_a_part_of_the_positions);
    RUN(test_a_model_may_lack_the_last_tokens_of_its_tokenizer);
    RUN(test_generation_keeps_its_promises); RUN(test_a_saved_model_is_used_as_it_lies);
    if (tmoe_ctx_bytes(ctx, NULL) != before) {
        printf("memory was left behind\n");
        failed++;
    } tmoe_ctx_destroy(ctx);)
