/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/remote/rate.h"

#define MANY_PEERS 1024u /* then those that were silent for a while are forgotten */

struct rates {
    GMutex lock;
    GHashTable *peers; /* name -> struct account */
};

struct account {
    double left;  /* requests that may be made at once */
    int64_t last; /* when that was reckoned, monotonic */
};

struct rates *rates_new(void)
{
    struct rates *rates = g_new0(struct rates, 1);

    g_mutex_init(&rates->lock);
    rates->peers = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
    return rates;
}

void rates_free(struct rates *rates)
{
    if (!rates)
        return;
    g_hash_table_unref(rates->peers);
    g_mutex_clear(&rates->lock);
    g_free(rates);
}

/* A second later an account is as good as new. */
static gboolean is_full(gpointer name, gpointer value, gpointer now)
{
    const struct account *account = value;

    return account->last + G_USEC_PER_SEC <= *(const int64_t *)now;
}

static struct account *account_of(struct rates *rates, const char *peer, int64_t now)
{
    struct account *account = g_hash_table_lookup(rates->peers, peer);

    if (account)
        return account;
    if (g_hash_table_size(rates->peers) >= MANY_PEERS)
        g_hash_table_foreach_remove(rates->peers, is_full, &now);
    account = g_new0(struct account, 1);
    account->last = now - G_USEC_PER_SEC;
    g_hash_table_insert(rates->peers, g_strdup(peer), account);
    return account;
}

bool rates_allow(struct rates *rates, const char *peer, unsigned per_second)
{
    g_autoptr(GMutexLocker) locker = g_mutex_locker_new(&rates->lock);
    int64_t now = g_get_monotonic_time();
    struct account *account = account_of(rates, peer, now);
    double earned = (double)(now - account->last) * per_second / G_USEC_PER_SEC;

    account->left = MIN(account->left + earned, (double)per_second);
    account->last = now;
    if (account->left < 1)
        return false;
    account->left--;
    return true;
}
