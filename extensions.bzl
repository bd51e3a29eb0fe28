"""The module extension: a prebuilt bj for MODULE.bazel."""

load(":repositories.bzl", "bj_binary")

_binary = tag_class(attrs = {
    "name": attr.string(default = "bj_binary"),
    "path": attr.string(),
    "sha256": attr.string(),
    "url": attr.string(),
})

def _bj_impl(ctx):
    for module in ctx.modules:
        for b in module.tags.binary:
            bj_binary(name = b.name, path = b.path, url = b.url, sha256 = b.sha256)

bj = module_extension(implementation = _bj_impl, tag_classes = {"binary": _binary})
