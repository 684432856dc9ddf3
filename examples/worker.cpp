// worker: C++17. A thread trains and keeps its model in FILE; another one asks the model of the
// file meanwhile, and stops the training after ANSWERS answers. Each thread has its own context.
//   usage      worker FOLDER FILE TASK INPUT
//   read next  RULES and tmoe_training in taskmoe.h
#define TASKMOE_IMPLEMENTATION
#include "../taskmoe.h"
#include <atomic>
#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <string>

// What the library makes is destroyed at the end of its scope, a context after what is on it.
template <auto destroy> struct Destroy {
    template <class T> void operator()(T *object) const
    {
        destroy(object);
    }
};

using Context = std::unique_ptr<tmoe_ctx, Destroy<tmoe_ctx_destroy>>;
using Suite = std::unique_ptr<tmoe_suite, Destroy<tmoe_suite_destroy>>;
using Model = std::unique_ptr<tmoe_model, Destroy<tmoe_model_destroy>>;

constexpr int SAVE_EVERY = 50, ANSWERS = 3;

struct Job { // what the two threads share
    std::string folder, file;
    std::atomic<bool> cancel{ false };
    std::atomic<int64_t> step{ 0 }, saved{ 0 }; // the last step, and that of the model in the file
};

static int on_step(void *user, const tmoe_progress *progress)
{
    Job &job = *static_cast<Job *>(user);
    const bool stop = job.cancel;
    job.step = progress->step;
    if (!stop && progress->step % SAVE_EVERY != 0) return 0;
    tmoe_model *model = tmoe_trainer_model(progress->trainer);
    if (tmoe_model_save(model, job.file.c_str()) != TMOE_OK) return 1; // job.saved stays
    job.saved = progress->step;
    return stop;
}

static std::string train(Job &job) // returns how it ended
{
    const Context context(tmoe_ctx_create(nullptr));
    if (!context) return "no memory";
    const Suite suite(tmoe_suite_load(context.get(), job.folder.c_str(), nullptr));
    tmoe_training training = tmoe_training_default();
    training.progress = on_step;
    training.progress_user = &job;
    const Model model(suite ? tmoe_train(context.get(), suite.get(), nullptr, &training) : nullptr);
    return model ? "finished" : tmoe_error_message(context.get());
}

static std::string answer(const Job &job, const char *task, const char *input)
{
    const Context context(tmoe_ctx_create(nullptr));
    if (!context) return "no memory";
    const Model model(tmoe_model_load(context.get(), job.file.c_str()));
    char text[256];
    if (model && tmoe_answer(model.get(), task, input, text, sizeof text) == TMOE_OK) return text;
    return std::string("no answer: ") + tmoe_error_message(context.get());
}

int main(int argc, char **argv)
{
    if (argc != 5) return std::fprintf(stderr, "usage: worker FOLDER FILE TASK INPUT\n"), 2;
    Job job{ argv[1], argv[2] };
    std::future<std::string> end = std::async(std::launch::async, train, std::ref(job));
    int64_t seen = 0;
    for (int answers = 0; answers < ANSWERS;) {
        if (end.wait_for(std::chrono::milliseconds(1)) == std::future_status::ready) break;
        if (job.saved == seen) continue;
        seen = job.saved;
        std::printf("step %lld: %s\n", (long long)seen, answer(job, argv[3], argv[4]).c_str());
        answers++;
    }
    job.cancel = true;
    std::printf("%s\n", end.get().c_str());
    seen = job.saved;
    std::printf("kept, step %lld: %s\n", (long long)seen, answer(job, argv[3], argv[4]).c_str());
    return seen == 0 || seen != job.step; // the last step's model is what was to be kept
}
