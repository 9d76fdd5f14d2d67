/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockmig/vm/definition.h"

#include "blockmig/storage/library.h"
#include "formats/error.h"

#include <libxml/parser.h>
#include <libxml/xpath.h>
#include <string.h>

#define LARGEST (8u << 20) /* bytes of a definition */

struct definition {
    xmlDocPtr document;
};

static struct {
    bool loaded;
    __typeof__(&xmlReadMemory) read_memory;
    __typeof__(&xmlFreeDoc) free_document;
    __typeof__(&xmlDocDumpMemory) dump;
    __typeof__(&xmlBufferCreate) buffer_new;
    __typeof__(&xmlBufferFree) buffer_free;
    __typeof__(&xmlBufferContent) buffer_content;
    __typeof__(&xmlNodeDump) dump_node;
    __typeof__(&xmlXPathNewContext) context_new;
    __typeof__(&xmlXPathFreeContext) context_free;
    __typeof__(&xmlXPathEvalExpression) evaluate;
    __typeof__(&xmlXPathFreeObject) object_free;
    __typeof__(&xmlNodeGetContent) content;
    __typeof__(&xmlNodeSetContent) set_content;
    __typeof__(&xmlSetProp) set_attribute;
    __typeof__(&xmlNewTextChild) new_child;
    __typeof__(&xmlRemoveProp) remove_attribute;
    __typeof__(&xmlUnlinkNode) unlink;
    __typeof__(&xmlFreeNode) free_node;
    __typeof__(&xmlFree) free; /* a variable */
} xml;

static bool load(GError **error)
{
    static const char *const files[] = {"libxml2.so.2", NULL};
    const struct library_symbol symbols[] = {
        {"xmlReadMemory", (void **)&xml.read_memory},
        {"xmlFreeDoc", (void **)&xml.free_document},
        {"xmlDocDumpMemory", (void **)&xml.dump},
        {"xmlBufferCreate", (void **)&xml.buffer_new},
        {"xmlBufferFree", (void **)&xml.buffer_free},
        {"xmlBufferContent", (void **)&xml.buffer_content},
        {"xmlNodeDump", (void **)&xml.dump_node},
        {"xmlXPathNewContext", (void **)&xml.context_new},
        {"xmlXPathFreeContext", (void **)&xml.context_free},
        {"xmlXPathEvalExpression", (void **)&xml.evaluate},
        {"xmlXPathFreeObject", (void **)&xml.object_free},
        {"xmlNodeGetContent", (void **)&xml.content},
        {"xmlNodeSetContent", (void **)&xml.set_content},
        {"xmlSetProp", (void **)&xml.set_attribute},
        {"xmlNewTextChild", (void **)&xml.new_child},
        {"xmlRemoveProp", (void **)&xml.remove_attribute},
        {"xmlUnlinkNode", (void **)&xml.unlink},
        {"xmlFreeNode", (void **)&xml.free_node},
        {"xmlFree", (void **)&xml.free},
        {NULL},
    };

    xml.loaded = xml.loaded || library_load(files, symbols, error);
    return xml.loaded;
}

struct definition *definition_parse(const char *text, GError **error)
{
    struct definition *definition;
    size_t length = strlen(text);
    xmlDocPtr document;

    if (!load(error))
        return NULL;
    document = length <= LARGEST ? xml.read_memory(text, (int)length, NULL, NULL,
                                                   XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING)
                                 : NULL;
    if (!document) {
        blockmig_fail(error, BLOCKMIG_ERROR_REFUSED, "the machine's definition cannot be read");
        return NULL;
    }
    definition = g_new0(struct definition, 1);
    definition->document = document;
    return definition;
}

void definition_free(struct definition *definition)
{
    if (!definition)
        return;
    xml.free_document(definition->document);
    g_free(definition);
}

/* libxml2 has an allocator of its own. */
static char *take(xmlChar *text)
{
    char *own = g_strdup((const char *)text);

    if (text)
        (*xml.free)(text);
    return own;
}

char *definition_text(const struct definition *definition)
{
    xmlChar *text = NULL;
    int length;

    xml.dump(definition->document, &text, &length);
    return take(text);
}

typedef void (*node_fn)(xmlNodePtr node, void *opaque);

/* From the last to the first, so that what is removed takes nothing with it that is still to come. */
static void each(const struct definition *definition, const char *path, node_fn act, void *opaque)
{
    xmlXPathContextPtr context = xml.context_new(definition->document);
    xmlXPathObjectPtr found = xml.evaluate((const xmlChar *)path, context);
    int count = found && found->nodesetval ? found->nodesetval->nodeNr : 0;

    for (int i = count; i-- > 0;)
        act(found->nodesetval->nodeTab[i], opaque);
    if (found)
        xml.object_free(found);
    xml.context_free(context);
}

static void add_text(xmlNodePtr node, void *texts)
{
    g_ptr_array_insert(texts, 0, take(xml.content(node)));
}

GPtrArray *definition_all(const struct definition *definition, const char *path)
{
    GPtrArray *texts = g_ptr_array_new_with_free_func(g_free);

    each(definition, path, add_text, texts);
    return texts;
}

char *definition_get(const struct definition *definition, const char *path)
{
    g_autoptr(GPtrArray) texts = definition_all(definition, path);

    return texts->len ? g_strdup(g_ptr_array_index(texts, 0)) : NULL;
}

unsigned definition_count(const struct definition *definition, const char *path)
{
    g_autoptr(GPtrArray) texts = definition_all(definition, path);

    return texts->len;
}

static void dump_node(xmlNodePtr node, void *text)
{
    xmlBufferPtr buffer = xml.buffer_new();

    xml.dump_node(buffer, node->doc, node, 0, 0);
    g_free(*(char **)text);
    *(char **)text = g_strdup((const char *)xml.buffer_content(buffer));
    xml.buffer_free(buffer);
}

char *definition_part(const struct definition *definition, const char *path)
{
    char *text = NULL;

    each(definition, path, dump_node, &text);
    return text;
}

/* What libxml2 takes as the content of an element is markup already; the text of a child is not. */
static void set_text(xmlNodePtr node, void *value)
{
    if (node->type == XML_ATTRIBUTE_NODE) {
        xml.set_attribute(node->parent, node->name, value);
    } else {
        g_autofree char *escaped = g_markup_escape_text(value, -1);

        xml.set_content(node, (const xmlChar *)escaped);
    }
}

void definition_set(struct definition *definition, const char *path, const char *value)
{
    each(definition, path, set_text, (void *)value);
}

static void set_one(xmlNodePtr node, void *pair)
{
    const char *const *texts = pair;

    xml.set_attribute(node, (const xmlChar *)texts[0], (const xmlChar *)texts[1]);
}

void definition_set_attribute(struct definition *definition, const char *path, const char *name,
                              const char *value)
{
    each(definition, path, set_one, (const char *[]){name, value});
}

static void add_one(xmlNodePtr node, void *opaque)
{
    const char *const *pair = opaque;

    xml.new_child(node, NULL, (const xmlChar *)pair[0], (const xmlChar *)pair[1]);
}

void definition_set_child(struct definition *definition, const char *path, const char *name, const char *text)
{
    g_autofree char *old = g_strdup_printf("%s/%s", path, name);

    definition_remove(definition, old);
    each(definition, path, add_one, (const char *[]){name, text});
}

static void remove_node(xmlNodePtr node, void *opaque)
{
    if (node->type == XML_ATTRIBUTE_NODE) {
        xml.remove_attribute((xmlAttrPtr)node);
        return;
    }
    xml.unlink(node);
    xml.free_node(node);
}

void definition_remove(struct definition *definition, const char *path)
{
    each(definition, path, remove_node, NULL);
}

bool definition_is_word(const char *text)
{
    return *text &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:") == strlen(text);
}
