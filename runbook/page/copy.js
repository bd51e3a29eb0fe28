"use strict";
for (const pre of document.querySelectorAll("pre.sh")) {
  const box = document.createElement("div"), button = document.createElement("button");
  box.className = "command";
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-live", "polite");
  pre.replaceWith(box);
  box.append(button, pre);
  button.addEventListener("click", async () => {
    const text = pre.textContent.replace(/\n$/, "");
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      box.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = done ? "Copied" : "Not copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
