/** Keeps the end of the conversation in sight, unless the reader has scrolled away from it. */

const NEAR_PIXELS = 48;

export function followEnd(scroller, content, button) {
  let following = true;
  const toEnd = () => (scroller.scrollTop = scroller.scrollHeight);
  const isNear = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_PIXELS;
  scroller.addEventListener("scroll", () => {
    following = isNear();
    button.hidden = following;
  });
  const resized = new ResizeObserver(() => following && toEnd());
  resized.observe(content);
  resized.observe(scroller);
  const follow = () => {
    following = true;
    toEnd();
  };
  button.addEventListener("click", follow);
  return follow;
}
