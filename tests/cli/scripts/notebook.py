# %% [markdown]
# # Churn, first look

# %%
%matplotlib inline
import pandas as pd
import seaborn as sns

# %%
df = pd.read_parquet("customers.parquet")
df.head()

# %%
df.describe()
df["plan"].value_counts()

# %%
df["plan"] = df["plan"].map({"basic": 0, "plus": 1, "family": 2})
df["data_gb"] = df["data_gb"].fillna(df["data_gb"].median())
sns.heatmap(df.corr(numeric_only=True))

# %%
features = [c for c in df.columns if c not in ["churned", "customer", "asked_at"]]
df = df.sort_values("asked_at")
cut = int(len(df) * 0.8)
train, test = df.iloc[:cut], df.iloc[cut:]

# %%
from sklearn.ensemble import GradientBoostingClassifier

clf = GradientBoostingClassifier(n_estimators=40)
clf.fit(train[features], train["churned"])

# %%
from sklearn.metrics import classification_report, f1_score

pred = clf.predict(test[features])
print(classification_report(test["churned"], pred))
f1_score(test["churned"], pred)
