/* tmoe_generate in one line, for tests: the route of a task, or none. */
#ifndef TMOE_TEST_GENERATE_H
#define TMOE_TEST_GENERATE_H

static inline tmoe_result generate(tmoe_model *model, int task, const int *ids, const int *lengths,
    int count, const tmoe_generation *how, int *tokens, int *token_counts, float *scores)
{
    tmoe_request request;
    tmoe_generated out;
    memset(&request, 0, sizeof request);
    request.task = task;
    request.ids = ids;
    request.lengths = lengths;
    request.count = count;
    request.how = how;
    out.tokens = tokens;
    out.token_counts = token_counts;
    out.scores = scores;
    return tmoe_generate(model, &request, &out);
}
#endif
