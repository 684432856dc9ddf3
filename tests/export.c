/* Makes a small BART-shaped mixture, trains it a little, cuts one task out into a folder and writes
 * what the mixture itself computes for that task: FOLDER/expected.json holds source and target ids
 * and their logits. tests/check_export.py compares them with transformers'. */
#define TASKMOE_IMPLEMENTATION
#include "taskmoe.h"

int main(int argc, char **argv)
{
    static const int source_ids[] = { 0, 40, 80, 120, 77, 2 }, target_ids[] = { 0, 70, 90, 110, 2 };
    const char *folder = argc > 1 ? argv[1] : "build/exported", *name = "word_upper_case";
    tmoe_ctx *ctx = tmoe_ctx_create(NULL);
    tmoe_suite *suite = tmoe_suite_load(ctx, "examples/suite", "quickstart");
    tmoe_config c = tmoe_config_default();
    tmoe_training t = tmoe_training_default();
    char path[600];
    c.width = 32;
    c.encoder_ffn = 64;
    c.decoder_ffn = 48;
    c.encoder_heads = 2;
    c.decoder_heads = 4;
    c.norm = TMOE_NORM_POST;
    c.positions = TMOE_POSITION_LEARNED;
    c.task_input = TMOE_TASK_TEXT | TMOE_TASK_VECTOR;
    c.experts = 3;
    c.source_tokens = c.target_tokens = 128;
    c.begin_in_target = c.specials_in_text = 1;
    t.steps = 30;
    t.vocabulary = 0;
    tmoe_model *model = suite ? tmoe_train(ctx, suite, &c, &t) : NULL;
    if (model && tmoe_model_find_task(model, name) < 0) name = tmoe_model_task(model, 0)->name;
    if (!model || tmoe_export_dense(model, name, NULL, folder) != TMOE_OK) {
        printf("export: %s\n", tmoe_error_message(ctx));
        return 1;
    }
    tmoei_batch b;
    tmoei_pass pass;
    memset(&b, 0, sizeof b);
    if (tmoei_batch_reserve(ctx, &b, 6, 5, 1) != TMOE_OK) return 1;
    tmoei_batch_put(&b, source_ids, 6, target_ids, 5, c.start_id);
    const tmoei_guide guide = tmoei_guide_of(tmoe_model_find_task(model, name));
    if (tmoei_evaluation_pass(model, &guide, model->tape, &pass) != TMOE_OK) return 1;
    const tmoe_tensor *h = tmoei_head(&pass,
        tmoei_decode(&pass, &b.target, tmoei_encode(&pass, &b.source), &b.source));
    (void)snprintf(path, sizeof path, "%s/expected.json", folder);
    FILE *file = h ? fopen(path, "w") : NULL;
    if (!file) return 1;
    fprintf(file,
        "{\"source\": [0, 40, 80, 120, 77, 2], \"labels\": [0, 70, 90, 110, 2], \"logits\": [");
    for (int i = 0; i < h->rows * h->cols; i++)
        fprintf(file, "%s%.9g", i ? ", " : "", (double)h->x[i]);
    fprintf(file, "]}\n");
    if (fclose(file) != 0) return 1;
    printf("%s: task %s of a mixture of 3\n", folder, name);
    tmoei_free(ctx, b.memory);
    tmoe_model_destroy(model);
    tmoe_suite_destroy(suite);
    tmoe_ctx_destroy(ctx);
    return 0;
}
