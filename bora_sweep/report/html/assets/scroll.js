// What is wider or higher than its frame says so: a shadow at each edge beyond which there is more, and words above it.

/** Which edges of a box have more beyond them; half a pixel is none. */
function beyond({ scrollLeft, scrollTop, scrollWidth, scrollHeight, clientWidth, clientHeight }) {
  const more = { left: scrollLeft, right: scrollWidth - clientWidth - scrollLeft, up: scrollTop,
    down: scrollHeight - clientHeight - scrollTop };
  return Object.keys(more).filter((edge) => more[edge] > 1);
}

/** Put a box that scrolls into a frame with its hints, which follow its place and its size. */
function hintMore(box) {
  const edges = ["left", "right", "up", "down"].map((edge) => element("i", { class: `edge ${edge}`, "aria-hidden":
    "true" }));
  const hint = element("p", { class: "hint", hidden: "" }, box.matches("pre") ? "Long lines: scroll sideways →"
    : "More columns: scroll sideways →");
  const frame = element("div", { class: "scroller" });
  box.before(hint, frame);
  frame.append(box, ...edges);
  const update = () => {
    frame.dataset.more = beyond(box).join(" ");
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
  };
  box.addEventListener("scroll", update, { passive: true });
  const resized = new ResizeObserver(update);
  resized.observe(box);
  if (box.firstElementChild) resized.observe(box.firstElementChild);
  update();
}

function hintAll() {
  document.querySelectorAll(".scroll, pre").forEach(hintMore);
}
