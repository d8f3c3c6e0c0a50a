/** A page that is opened with a browser token in its address (`/#token=…`) exchanges it for the relay's cookie. */

/** The token is good once, and stays in no history. What becomes of it the first question will tell. */
export async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  history.replaceState(history.state, "", location.pathname + location.search);
  const headers = { "content-type": "application/json" };
  const request = { method: "POST", headers, body: JSON.stringify({ token }) };
  await fetch(new URL("session", document.baseURI), request).catch(() => undefined);
}
