/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/storage/pace.h"

#include <glib.h>

#define ENOUGH_BYTES   (16u << 20) /* of content for a measurement, and */
#define LEAST_TIME     (G_USEC_PER_SEC / 8)
#define ENOUGH_TIME    (G_USEC_PER_SEC / 2) /* whatever came */
#define LONGEST        64                   /* interval between trials, and */
#define LONGER         2                    /* how much longer it gets after one that was lost */
#define WINS           2   /* one after the other: content differs, too, from one measurement to the next; */
#define CLEARLY        1.5 /* by so much once is enough */
#define WORTH_MORE     1.05
#define WORTH_AS_MUCH  0.98
#define WORTH_STARTING 1.25 /* to compress, which takes the processors of both hosts, and */
#define WORTH_STOPPING 0.9

/* Of files of an operating system, level 1 leaves 0.37 at 440 MB/s, 3 leaves 0.35 at 220; -1 is not faster.
 */
static const int levels[PACE_STEPS] = {0, 1, 3};

unsigned pace_begin(struct pace *pace)
{
    pace->under_way[pace->trying]++;
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

/* The neighbours in turns; at the ends there is only one. */
static unsigned next_trial(struct pace *pace)
{
    if (!pace->wins)
        pace->down = pace->step == PACE_STEPS - 1 || (pace->step > 0 && !pace->down);
    return pace->down ? pace->step - 1 : pace->step + 1;
}

/* How much faster it has to be; a little slower is good enough for what costs less. */
static double worth(unsigned from, unsigned to)
{
    if (to > from)
        return from == 0 ? WORTH_STARTING : WORTH_MORE;
    return to == 0 ? WORTH_STOPPING : WORTH_AS_MUCH;
}

/* What has won once is soon tried again, next to what it is compared with. One that lost is left alone for
 * longer each time. */
static void judge(struct pace *pace)
{
    double least = worth(pace->step, pace->trying) * pace->rate[pace->step], rate = pace->rate[pace->trying];
    bool won = rate > least, clearly = won ? rate > CLEARLY * least : rate * CLEARLY < least;
    unsigned longer = pace->interval * (clearly ? LONGER * LONGER : LONGER);

    pace->wins = !won ? 0 : clearly ? WINS : pace->wins + 1;
    pace->interval = won ? 1 : MIN(longer, LONGEST);
    if (won)
        pace->rate[pace->step] = 0;
    if (pace->wins == WINS) {
        pace->step = pace->trying;
        pace->down = !pace->down; /* one step further comes next */
        pace->wins = 0;
    }
    measure(pace, pace->step);
}

static void decide(struct pace *pace)
{
    if (pace->trying != pace->step) {
        judge(pace);
    } else if (++pace->since_trial >= pace->interval) {
        pace->since_trial = 0;
        measure(pace, next_trial(pace));
    } else {
        measure(pace, pace->step);
    }
}

static bool others_are_under_way(const struct pace *pace)
{
    for (unsigned i = 0; i < PACE_STEPS; i++)
        if (i != pace->trying && pace->under_way[i])
            return true;
    return false;
}

void pace_end(struct pace *pace, unsigned step, size_t bytes, int64_t now)
{
    double *rate = &pace->rate[step], measured;

    pace->under_way[step]--;
    if (step != pace->trying || others_are_under_way(pace) || !bytes)
        return;
    if (!pace->begin) {
        pace->begin = now;
        return;
    }
    pace->bytes += bytes;
    if (now - pace->begin < (pace->bytes < ENOUGH_BYTES ? ENOUGH_TIME : LEAST_TIME))
        return;
    if (!pace->warm) {
        pace->warm = true;
        measure(pace, pace->step);
        return;
    }
    measured = (double)pace->bytes / (double)MAX(now - pace->begin, 1);
    *rate = *rate == 0 || step != pace->step ? measured : (*rate + measured) / 2;
    decide(pace);
}
