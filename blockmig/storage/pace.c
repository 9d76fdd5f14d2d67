/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/pace.h"

#include <glib.h>

#define ENOUGH_BYTES    (32u << 20) /* of content for a measurement, or */
#define ENOUGH_TIME     (G_USEC_PER_SEC / 2)
#define TRIAL_EVERY     16 /* measurements; the first time soon */
#define WORTH_CHANGING  1.05
#define WORTH_BEGINNING 1.25 /* to compress, which takes the processors of both hosts */

/* Of files of an operating system, level 1 leaves a third; -1 a tenth more than that, in half the time. */
static const int levels[PACE_STEPS] = {0, -1, 1, 3};

unsigned pace_step(const struct pace *pace)
{
    return pace->trying;
}

int pace_level(unsigned step)
{
    return levels[step];
}

static void measure(struct pace *pace, unsigned step)
{
    pace->trying = step;
    pace->begin = 0;
    pace->bytes = 0;
}

/* What was faster once may be so again, one step further: that is tried next. */
static void move(struct pace *pace)
{
    pace->step = pace->trying;
    pace->down = !pace->down;
    pace->since_trial = TRIAL_EVERY;
}

/* The neighbours in turns; at the ends there is only one. */
static unsigned next_trial(struct pace *pace)
{
    pace->down = pace->step == PACE_STEPS - 1 || (pace->step > 0 && !pace->down);
    return pace->down ? pace->step - 1 : pace->step + 1;
}

/* To compress is begun with if it was faster twice, each time than what was measured just before: where a
 * copy begins, everything is slow. */
static void judge(struct pace *pace)
{
    bool begins = pace->step == 0;
    double worth = begins ? WORTH_BEGINNING : WORTH_CHANGING;
    bool faster = pace->rate[pace->trying] > worth * pace->rate[pace->step];

    pace->wins = faster && begins ? pace->wins + 1 : 0;
    if (begins && pace->wins == 1) {
        pace->rate[0] = 0;
        pace->since_trial = TRIAL_EVERY;
    } else if (faster) {
        move(pace);
    }
    measure(pace, pace->step);
}

static void decide(struct pace *pace)
{
    if (pace->trying != pace->step) {
        judge(pace);
    } else if (++pace->since_trial >= (pace->tried ? TRIAL_EVERY : 1)) {
        pace->since_trial = 0;
        pace->tried = true;
        measure(pace, next_trial(pace));
    } else {
        measure(pace, pace->step);
    }
}

/* Time counts from the first piece of that kind on: those that are under way before it are of another. */
void pace_note(struct pace *pace, unsigned step, size_t bytes, int64_t now)
{
    double *rate = &pace->rate[step], measured;

    if (step != pace->trying)
        return;
    if (!pace->begin) {
        pace->begin = now;
        return;
    }
    pace->bytes += bytes;
    if (pace->bytes < ENOUGH_BYTES && now - pace->begin < ENOUGH_TIME)
        return;
    measured = (double)pace->bytes / (double)MAX(now - pace->begin, 1);
    *rate = *rate == 0 || step != pace->step ? measured : (*rate + measured) / 2;
    decide(pace);
}
