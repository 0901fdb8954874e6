const filter = document.getElementById("filter");
const articles = [...document.querySelectorAll("article")];
function show() {
  const shown = articles.filter((article) => {
    article.hidden = filter.value !== "" && article.dataset.class !== filter.value;
    return !article.hidden;
  });
  document.getElementById("shown").textContent = `${shown.length} of ${articles.length} queries`;
}
filter.addEventListener("change", show);
show();
