/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The definition of a libvirt domain: XML, looked at and changed by XPath.  Places are named from the root
 * ("/domain/devices/disk[target/@dev='vda']/source/@file"); values that come from outside are put into a path
 * only after definition_is_word() was asked.
 */
#ifndef BLOCKMIG_VM_DEFINITION_H
#define BLOCKMIG_VM_DEFINITION_H

#include <glib.h>
#include <stdbool.h>

struct definition;

/* REFUSED: not XML, or libxml2 is not there. */
struct definition *definition_parse(const char *text, GError **error);
void definition_free(struct definition *definition); /* NULL is allowed */
/* The caller's. */
char *definition_text(const struct definition *definition);
/* The same of the first element that the path names; NULL: there is none. */
char *definition_part(const struct definition *definition, const char *path);

/* Text of the first element or attribute that the path names, the caller's; NULL: there is none. */
char *definition_get(const struct definition *definition, const char *path);
/* Of all, of char *, in the document's order. */
GPtrArray *definition_all(const struct definition *definition, const char *path);
unsigned definition_count(const struct definition *definition, const char *path);
/* All that the path names, if anything. */
void definition_set(struct definition *definition, const char *path, const char *value);
/* Adds or changes the attribute of the elements that the path names. */
void definition_set_attribute(struct definition *definition, const char *path, const char *name,
                              const char *value);
/* The elements that the path names have one child of that name, with this text. */
void definition_set_child(struct definition *definition, const char *path, const char *name,
                          const char *text);
void definition_remove(struct definition *definition, const char *path);

/* Letters, digits and -_.: only. */
bool definition_is_word(const char *text);

typedef struct definition definition_t; /* for g_autoptr only */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(definition_t, definition_free)

#endif
