"use strict";
{
  const all = JSON.parse(document.getElementById("entries").textContent);
  const search = document.getElementById("search"), field = document.getElementById("q"), found = document.getElementById("found"), hits = document.getElementById("hits");
  search.hidden = false;
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const some = words.length ? all.filter((e) => words.every((w) => e.text.includes(w))) : [];
    found.textContent = words.length ? some.length + " of " + all.length + " pages" : "";
    hits.replaceChildren(...some.map((e) => {
      const item = document.createElement("li"), a = document.createElement("a");
      a.href = encodeURIComponent(e.page) + ".html";
      a.textContent = e.title;
      item.append(a);
      return item;
    }));
  });
}
